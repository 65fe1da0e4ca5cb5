"""What a `DTSModel` is made of: a file a subject, each a class over the one before."""

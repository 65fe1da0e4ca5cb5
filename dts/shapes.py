"""What the shape of a weight says of its use."""

FEWEST = 256  # rows of a table
TALL = 6  # times as many rows as columns
SMALL = 16  # rows or columns: up to here a low rank saves little, and a convolution's kernel is as long


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Is it a stack of matrices [E, m, n] (experts, heads, a table [1, T, d]) rather than one matrix [m, n...]?

    A convolution [out, in / groups, kernel] and a projection to heads [d, heads, size] have more outputs than their
    kernel is long or their heads are wide, a stack has no more matrices than its matrices have rows or columns: this
    tells all of transformers' models.  Where experts are more than they are wide, the shape cannot tell, and a name
    that speaks of experts does.  Tensors of four dimensions and more are convolutions.
    """
    if len(shape) != 3:
        return False
    smaller = min(shape[1:])
    return shape[0] <= smaller or smaller > SMALL and "expert" in name.lower()


def is_of_tokens(name: str, shape: tuple[int, ...]) -> bool:
    """Is it a table with a row for each token, embeddings or an output layer?

    Those are outside of the blocks, whose names have a number, and much taller than wide: the tables of transformers'
    language models have 6 (Llama 2 of 13 B) to more than 100 times as many rows as columns.
    """
    in_block = any(part.isdigit() for part in name.split("."))
    return len(shape) == 2 and not in_block and shape[0] >= max(FEWEST, TALL * shape[1])

"""The engine's face: routes in OpenAI's and vLLM's shapes.  Needs the extra ``serve``."""

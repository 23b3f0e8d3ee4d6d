"""The routes below `/v1`, for other programs: in the shapes of OpenAI's and Mercury's APIs, and our
own `/v1/infill` beside them. A body becomes a call, a call becomes infills, and these an answer."""

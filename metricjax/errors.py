"""The one exception that is the user's mistake rather than ours."""


class InputError(ValueError):
    """Bad input, told in one sentence.

    The sentence names the file or the option, what was found and what to do.
    `python -m metricjax.main` prints it without a traceback and exits with code 2;
    to a caller of the library it is an ordinary `ValueError`.
    """

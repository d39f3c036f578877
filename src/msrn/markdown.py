"""Text of others in Markdown that we write."""

import html
import re

# Within a word an underscore means nothing, and names of our own are full of them.
_MARKS = re.compile(r"[\\`*\[\]~$|]|(?<![^\W_])_|_(?![^\W_])|:(?=//)")
# Only at the beginning: headings, lists.
_FIRST_MARK = re.compile(r"^(\d*)([#+.)-])")


def plain(text: str) -> str:
    r"""Text as Markdown that shows it as it is, on one line, also in the cell of a table.

    Example:
        >>> print(plain("a|b <i> ![x](http://y.org) avg_pool"))
        a\|b &lt;i&gt; !\[x\](http\://y.org) avg_pool
    """
    line = html.escape(" ".join(text.split()), quote=False)
    return _FIRST_MARK.sub(r"\1\\\2", _MARKS.sub(r"\\\g<0>", line))

"""Why a pixel is or is not valid: one bit for each reason, the same bits from the kernel to the series.

`flag` is a CF bit field (`flag_masks`, `flag_meanings`), uint16. 0 means valid and measured. Bits in `WARNINGS`
leave the value standing; any other bit means that the value is NaN. A block that was never computed reads
`NOT_COMPUTED`, because that is the fill value of the variable in the store: "no match" and "not done" never look alike.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE = 1
"""The chip or its search window leaves the image."""
NO_DATA = 2
"""Too few valid pixels: no data, cloud, shadow or a mask."""
FLAT = 4
"""The chip has no texture."""
RIM = 8
"""The correlation peak lies on the rim of the search window, or beside displacements that the masks forbid: the true
motion may lie beyond."""
LOW_CORRELATION = 16
AMBIGUOUS = 32
"""The second peak is almost as high as the first."""
NOT_REFINED = 64
"""Warning: the sub-pixel step failed, the whole-pixel peak is kept."""
NEIGHBOURS = 128
"""Too few neighbours agree (normalised displacement coherence)."""
OUTLIER = 256
"""Rejected by the local median test."""
FEW_NEIGHBOURS = 512
"""Warning: too few neighbours to test against."""
INTERPOLATED = 1024
"""Warning: filled, not measured."""
PRIOR_MISSING = 2048
"""Warning: no prior here, the full window was searched."""
TOO_FEW_PAIRS = 4096
"""Inversion: not enough valid pairs at this pixel."""
GAP = 8192
"""Inversion: no pair covers this time."""
SCREENED = 16384
"""Inversion: the pairs of this pixel were screened out."""
NOT_COMPUTED = 32768
"""The block was never computed; the fill value of `flag`."""
UNREADABLE = NO_DATA | NOT_COMPUTED
"""A scene of the pair cannot be read, for good. All sixteen bits are taken, and these two never meet otherwise: whoever
reads them one by one learns that nothing was computed for want of data."""

MEANINGS: dict[int, str] = {
    OUTSIDE: "outside_image",
    NO_DATA: "no_data_or_masked",
    FLAT: "flat_chip",
    RIM: "peak_on_rim_of_search_window",
    LOW_CORRELATION: "low_correlation",
    AMBIGUOUS: "ambiguous_peak",
    NOT_REFINED: "not_refined",
    NEIGHBOURS: "neighbours_disagree",
    OUTLIER: "local_median_outlier",
    FEW_NEIGHBOURS: "too_few_neighbours_to_test",
    INTERPOLATED: "interpolated",
    PRIOR_MISSING: "prior_missing",
    TOO_FEW_PAIRS: "too_few_pairs",
    GAP: "gap_in_time",
    SCREENED: "all_pairs_screened_out",
    NOT_COMPUTED: "not_computed",
    UNREADABLE: "scene_unreadable",
}
WARNINGS = NOT_REFINED | FEW_NEIGHBOURS | INTERPOLATED | PRIOR_MISSING


def attributes() -> dict[str, Any]:
    """CF attributes of a `flag` variable.

    Examples
    --------
    >>> attributes()["flag_meanings"].split()[0]
    'outside_image'
    """
    bits = {bit: text for bit, text in MEANINGS.items() if bit != UNREADABLE}
    return {
        "long_name": "reason why a pixel is not valid, 0 = valid and measured",
        "standard_name": "status_flag",
        "flag_masks": np.array(list(bits), np.uint16),
        "flag_meanings": " ".join(bits.values()),
        "comment": "no_data_or_masked and not_computed together: a scene of the pair cannot be read",
    }


def has(flag: Any, reason: int) -> Any:
    """True where a flag gives this reason.

    Parameters
    ----------
    flag : array of uint16, any shape
    reason : int
        A key of `MEANINGS`.

    Examples
    --------
    >>> flag = np.array([NO_DATA, NOT_COMPUTED, UNREADABLE], np.uint16)
    >>> has(flag, NO_DATA).tolist(), has(flag, UNREADABLE).tolist()
    ([True, False, False], [False, False, True])
    """
    mask = UNREADABLE if reason & UNREADABLE else reason
    return (flag & np.uint16(mask)) == np.uint16(reason)


def explain(value: int) -> list[str]:
    """The reasons in one flag value.

    Examples
    --------
    >>> explain(18)
    ['no_data_or_masked', 'low_correlation']
    """
    return [text for reason, text in MEANINGS.items() if has(np.uint16(value), reason)]


def tally(flag: Any) -> dict[str, int]:
    """How often each reason is set in an array of flags, in plain words, most frequent first.

    Examples
    --------
    >>> tally(np.array([0, RIM, LOW_CORRELATION, LOW_CORRELATION | RIM, LOW_CORRELATION], np.uint16))
    {'low correlation': 3, 'peak on rim of search window': 2}
    """
    counts = {text.replace("_", " "): int(np.count_nonzero(has(flag, reason))) for reason, text in MEANINGS.items()}
    return {text: n for text, n in sorted(counts.items(), key=lambda item: -item[1]) if n}


def invalid(flag: Any) -> Any:
    """True where the flag says that the value is not valid: any bit that is not a warning, unless it was filled.

    Parameters
    ----------
    flag : array of uint16, any shape

    Examples
    --------
    >>> invalid(np.array([0, NOT_REFINED, RIM], np.uint16)).tolist()
    [False, False, True]
    """
    return ((flag & np.uint16(0xFFFF & ~WARNINGS)) != 0) & ((flag & np.uint16(INTERPOLATED)) == 0)


def first_reason(flag: Any) -> NDArray[np.uint16]:
    """The lowest bit that makes a pixel invalid: the first test in the chain that it failed; 0 = valid.

    A scene that cannot be read (two bits) comes before all of them.

    Examples
    --------
    >>> first_reason(np.array([0, NOT_REFINED, RIM | OUTLIER, UNREADABLE], np.uint16)).tolist()
    [0, 0, 8, 32770]
    """
    reasons = np.asarray(flag, np.uint16) & np.uint16(0xFFFF & ~WARNINGS)
    unreadable = has(reasons, UNREADABLE)
    return np.where(unreadable, np.uint16(UNREADABLE), reasons & (~reasons + np.uint16(1)))

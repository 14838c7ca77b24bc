"""How far a measured share can be trusted, were its trials independent. No torch here."""

from statistics import NormalDist


def wilson_lower_bound(successes: int, trials: int, level: float = 0.95) -> float:
    """The share that the true one exceeds with confidence `level`: one-sided score interval, Wilson, JASA 1927.

    To accept at 90 % with 1,000 trials, 91.5 % must have been seen.

    Raises:
        ValueError: no trials, more successes than trials, or a level outside 0.5 to 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials; need at least one trial and no more successes.")
    if not 0.5 <= level < 1:
        raise ValueError(f"level is {level}; it must be from 0.5 to below 1.")
    z, share = NormalDist().inv_cdf(level), successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    return max(0.0, (centre - spread) / (1 + z * z / trials))


def verdict(successes: int, trials: int, required: float, level: float = 0.95) -> str:
    """Whether the true share reaches what is required: "accepted", "not accepted", or "inconclusive".

    Accepted when the one-sided Wilson lower bound reaches it; not accepted when the upper bound stays below; when the
    two ends straddle it, the trials do not decide, and none of them (no trials) decides nothing either.
    """
    if trials == 0:
        return "inconclusive"
    if wilson_lower_bound(successes, trials, level) >= required:
        return "accepted"
    highest = 1 - wilson_lower_bound(trials - successes, trials, level)
    return "not accepted" if highest < required else "inconclusive"

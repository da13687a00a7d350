"""Student's t distribution."""


def student_95(degrees: int) -> float:
    """The 97.5 % quantile: for 95 % intervals; of one degree of freedom, if there are fewer."""
    from scipy.special import stdtrit  # a tenth of a second, where there are intervals only

    return float(stdtrit(max(1, degrees), 0.975))

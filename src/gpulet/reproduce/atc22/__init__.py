"""gpu-lets (Choi et al., USENIX ATC 2022): its saturation, peak rates, schedulability, interference and scaling."""

"""How plans are changed while serving: `[control]` of a fleet file."""

from typing import Literal

from pydantic import Field

from gpulet.configsection import Section


class ControlSection(Section):
    """Live control: `[control]`."""

    mode: Literal["off", "advise", "auto"] = Field(
        "off", description="auto: plans change as rates do; advise: decisions are only told; off: the plan stays"
    )
    rule: Literal["watch", "epochs"] = Field(
        "watch", description="watch: by events, ours; epochs: every epoch_s, as gpu-lets' artifact does"
    )
    fewest: bool = Field(False, description="use as few devices as will do, and give back those that are spare")
    horizon_s: float = Field(
        30.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
        description="how long a plan is expected to last: what a change must pay in",
    )
    look_ms: float = Field(
        100.0, ge=10, le=60000, allow_inf_nan=False, description="rule watch: looks at rates, at least"
    )
    rise: float = Field(
        0.1,
        ge=0,
        allow_inf_nan=False,
        description="rule watch: a plan is asked for when a rate is this much above its planned one",
    )
    fall: float = Field(0.2, ge=0, lt=1, description="rule watch: likewise below it")
    patience_s: float = Field(
        3.0, ge=0, le=3600, allow_inf_nan=False, description="rule watch: and how long it must stay below"
    )
    lead_s: float = Field(
        2.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="rule watch: how far ahead a trend is followed; what a change takes",
    )
    spare_mib: float = Field(
        1024.0,
        ge=0,
        allow_inf_nan=False,
        description="models loaded beyond what the plan needs, so that they may get turns at once; not where [limits] bounds memory",
    )
    epoch_s: float = Field(
        20.0, gt=0, le=86400, allow_inf_nan=False, description="rule epochs: seconds between decisions"
    )
    reading_ms: float = Field(500.0, gt=0, le=60000, allow_inf_nan=False, description="rule epochs: readings of rates")
    headroom: float = Field(
        1.2, ge=1, allow_inf_nan=False, description="rule epochs: a rate is planned for so many times"
    )
    low_headroom: float = Field(
        1.5, ge=1, allow_inf_nan=False, description="rule epochs: and one below low_rate so many"
    )
    low_rate: float = Field(125.0, ge=0, allow_inf_nan=False, description="rule epochs: requests/s")
    growth: float = Field(0.05, ge=0, allow_inf_nan=False, description="rule epochs: growth that calls for a plan")
    growth_rate: float = Field(10.0, ge=0, allow_inf_nan=False, description="rule epochs: or so many requests/s")
    shrink: float = Field(0.1, ge=0, lt=1, description="rule epochs: fall that calls for a plan")
    build_ms: float = Field(
        0.0, ge=0, le=600000, allow_inf_nan=False, description="emulated devices: how long new gpulets take to come up"
    )
    plan_ms: float = Field(
        500.0,
        ge=0,
        le=600000,
        allow_inf_nan=False,
        description="how long planning is taken to take until it is known; by the virtual clock of simulate, always",
    )

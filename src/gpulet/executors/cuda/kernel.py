"""The proof kernel as PTX, which every CUDA driver since 11.0 compiles for its GPU when it is loaded.

`where(out, nanoseconds)`: the first thread of each block writes the id of its SM to `out[block]`, then holds its place
for that time. A clock that stands still ends it after 2^24 rounds, so it can never hang a device. ptxas 13.0.88 takes it
for sm_75, sm_80 and sm_90.
"""

from typing import Final

PTX: Final = b"""
.version 7.0
.target sm_52
.address_size 64
.visible .entry where(.param .u64 out, .param .u64 nanoseconds)
{
  .reg .pred %p<3>;
  .reg .b32 %r<5>;
  .reg .b64 %d<8>;
  mov.u32 %r0, %tid.x;
  setp.ne.u32 %p0, %r0, 0;
  @%p0 bra DONE;
  ld.param.u64 %d0, [out];
  ld.param.u64 %d1, [nanoseconds];
  cvta.to.global.u64 %d2, %d0;
  mov.u32 %r1, %ctaid.x;
  mul.wide.u32 %d3, %r1, 4;
  add.s64 %d4, %d2, %d3;
  mov.u32 %r2, %smid;
  st.global.u32 [%d4], %r2;
  mov.u64 %d5, %globaltimer;
  mov.u32 %r3, 0;
SPIN:
  add.u32 %r3, %r3, 1;
  setp.gt.u32 %p1, %r3, 16777216;
  @%p1 bra DONE;
  mov.u64 %d6, %globaltimer;
  sub.s64 %d7, %d6, %d5;
  setp.lt.u64 %p2, %d7, %d1;
  @%p2 bra SPIN;
DONE:
  ret;
}
\0"""

/* A CUDA driver for one imaginary GPU: enough of libcuda.so.1 for the real cuda-bindings to be called against, so that
 * every argument that executors/cuda/driver.py passes is really marshalled, and every result really unpacked.
 * Device memory is host memory; the proof kernel writes the ids of the SMs of its stream's context; nothing takes time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef struct { int type; unsigned char padding[92]; unsigned sms, least, alignment, first; unsigned char rest[32]; } Resource;
typedef struct { unsigned ids[256], count, kind; } Set;        /* a descriptor or a context */
typedef struct { Set *context; unsigned flags; } Stream;
_Static_assert(sizeof(Resource) == 144, "CUdevResource of CUDA 13.0");

static unsigned SMS = 132, GROUPS = 16, live_contexts, live_streams, live_marks, live_bytes, is_current, primaries;
static int version = 13000, balanced;
static char failing[64];
static Result failure;

void stub_shape(unsigned sms, unsigned groups) { SMS = sms; GROUPS = groups; }
void stub_fail(const char *name, Result result) { snprintf(failing, sizeof failing, "%s", name); failure = result; }
void stub_version(int number) { version = number; }
int stub_balanced(void) { return balanced; }
unsigned stub_left(void) { return live_contexts + live_streams + live_marks + live_bytes + primaries; }

#define CALL(name, ...) Result name(__VA_ARGS__) { if (!strcmp(failing, #name)) return failure;
#define END return 0; }
#define NEED(what) if (!(what)) return 1; /* CUDA_ERROR_INVALID_VALUE */

CALL(cuInit, unsigned flags) NEED(flags == 0) END
CALL(cuDriverGetVersion, int *out) *out = version; END
CALL(cuDeviceGetCount, int *count) *count = 1; END
CALL(cuDeviceGet, int *device, int ordinal) NEED(ordinal == 0) *device = 7; END
CALL(cuDeviceGetName, char *name, int length, int device) NEED(device == 7) snprintf(name, length, "Imaginary H200"); END
CALL(cuDevicePrimaryCtxRetain, void **context, int device) NEED(device == 7) *context = (void *)0x1000; primaries++; END
CALL(cuDevicePrimaryCtxRelease, int device) NEED(device == 7 && primaries) primaries--; END
CALL(cuCtxSetCurrent, void *context) NEED(context == (void *)0x1000) is_current = 1; END
static void fill(Resource *r, unsigned first, unsigned sms) {
  memset(r, 0, sizeof *r); r->type = 1; r->sms = sms; r->first = first; r->least = r->alignment = 8; }
CALL(cuDeviceGetDevResource, int device, Resource *r, int type) NEED(device == 7 && (type == 1 || version >= 13010))
  fill(r, 0, SMS); r->type = type; if (type != 1) memset(&r->sms, 0, 48); END
CALL(cuDevSmResourceSplitByCount, Resource *out, unsigned *count, const Resource *in, Resource *rest, unsigned flags, unsigned least)
  NEED(out && in->type == 1 && in->sms == SMS && flags == 0 && least == 8)
  if (*count > GROUPS) *count = GROUPS;
  for (unsigned g = 0; g < *count; g++) fill(&out[g], 8 * g, 8);
  if (rest) { fill(rest, 8 * *count, SMS - 8 * *count); if (!rest->sms) rest->type = 0; } END
CALL(cuDevResourceGenerateDesc, Set **out, Resource *sets, unsigned count) NEED(count)
  Set *made = calloc(1, sizeof *made);
  for (unsigned n = 0; n < count; n++) {
    if (sets[n].type != 1) { balanced = ((int *)&sets[n].sms)[2]; continue; } /* a work queue's sharing scope */
    for (unsigned k = 0; k < sets[n].sms; k++) made->ids[made->count++] = sets[n].first + k; }
  *out = made; END
CALL(cuGreenCtxCreate, Set **out, Set *set, int device, unsigned flags) NEED(device == 7 && flags == 1 && set && set->count)
  Set *made = malloc(sizeof *made); *made = *set; made->kind = 1; live_contexts++; *out = made; END
CALL(cuGreenCtxDestroy, Set *context) NEED(context->kind == 1) context->kind = 0; live_contexts--; END
CALL(cuGreenCtxGetDevResource, Set *context, Resource *r, int type) NEED(context->kind == 1 && type == 1) fill(r, context->ids[0], context->count); END
static Result stream(Stream **out, Set *context) { Stream *s = calloc(1, sizeof *s); s->context = context; live_streams++; *out = s; return 0; }
CALL(cuGreenCtxStreamCreate, Stream **out, Set *context, unsigned flags, int priority) NEED(context->kind == 1 && flags == 1 && priority == 0) stream(out, context); END
CALL(cuStreamCreateWithPriority, Stream **out, unsigned flags, int priority) NEED(is_current && flags == 1 && priority == 0) stream(out, 0); END
CALL(cuStreamGetGreenCtx, Stream *s, Set **out) *out = s->context; END
CALL(cuStreamQuery, Stream *s) END
CALL(cuStreamSynchronize, Stream *s) END
CALL(cuStreamDestroy, Stream *s) live_streams--; free(s); END
CALL(cuEventCreate, Stream ***out, unsigned flags) NEED(flags == 1) *out = calloc(1, sizeof **out); live_marks++; END
CALL(cuEventRecord, Stream **mark, Stream *s) *mark = s; END
CALL(cuEventQuery, Stream **mark) NEED(*mark) END
CALL(cuEventSynchronize, Stream **mark) NEED(*mark) END
CALL(cuEventElapsedTime, float *ms, Stream **a, Stream **b) NEED(*a && *b) *ms = 1.5f; END
CALL(cuEventDestroy, Stream **mark) live_marks--; free(mark); END
CALL(cuMemGetInfo, size_t *bytes, size_t *total) *bytes = 100; *total = 141; END
CALL(cuMemAlloc, uint64_t *out, size_t bytes) *out = (uint64_t)(uintptr_t)malloc(bytes); live_bytes++; END
CALL(cuMemFree, uint64_t where) free((void *)(uintptr_t)where); live_bytes--; END
CALL(cuMemHostRegister, void *page, size_t bytes, unsigned flags) NEED(page && bytes && !flags) live_bytes++; END
CALL(cuMemHostUnregister, void *page) NEED(page) live_bytes--; END
CALL(cuMemsetD32Async, uint64_t where, unsigned value, size_t count, Stream *s)
  for (size_t n = 0; n < count; n++) ((unsigned *)(uintptr_t)where)[n] = value; END
CALL(cuMemcpyDtoH, void *to, uint64_t from, size_t bytes) memcpy(to, (void *)(uintptr_t)from, bytes); END
CALL(cuLibraryLoadData, void **out, const char *code, void *a, void *b, unsigned jit, void *c, void *d, unsigned options)
  NEED(strstr(code, ".visible .entry where") && !jit && !options) *out = (void *)0x2000; live_bytes++; END
CALL(cuLibraryGetKernel, void **out, void *library, const char *name) NEED(library == (void *)0x2000 && !strcmp(name, "where")) *out = (void *)0x3000; END
CALL(cuLibraryUnload, void *library) NEED(library == (void *)0x2000) live_bytes--; END
static Stream *capturing;
static struct { unsigned *out, blocks; Stream *stream; } captured;
static void where(unsigned *out, unsigned blocks, Stream *s) {
  unsigned count = s->context ? s->context->count : SMS;
  for (unsigned n = 0; n < blocks; n++) out[n] = s->context ? s->context->ids[n % count] : n % count; }
CALL(cuStreamBeginCapture, Stream *s, int mode) NEED(mode == 1) capturing = s; END
CALL(cuStreamEndCapture, Stream *s, void **graph) NEED(s == capturing) capturing = 0; *graph = (void *)0x4000; live_bytes++; END
CALL(cuGraphInstantiateWithFlags, void **out, void *graph, uint64_t flags) NEED(graph == (void *)0x4000 && !flags) *out = (void *)0x5000; live_bytes++; END
CALL(cuGraphLaunch, void *graph, Stream *s) NEED(graph == (void *)0x5000) where(captured.out, captured.blocks, captured.stream); END
CALL(cuGraphExecDestroy, void *graph) NEED(graph == (void *)0x5000) live_bytes--; END
CALL(cuGraphDestroy, void *graph) NEED(graph == (void *)0x4000) live_bytes--; END
CALL(cuLaunchKernel, void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream *s, void **given, void **extra)
  NEED(f == (void *)0x3000 && gy * gz * by * bz == 1 && bx == 32 && !shared && given && !extra)
  unsigned *out = *(unsigned **)given[0]; uint64_t spin = *(uint64_t *)given[1];
  NEED(spin >= 1000 && spin <= 1000000000)
  if (s == capturing) { captured.out = out; captured.blocks = gx; captured.stream = s; }
  else where(out, gx, s); END

Result cuGetProcAddress_v2(const char *symbol, void **out, int version, uint64_t flags, int *status) {
  *out = !strncmp(symbol, "cuGetProcAddress", 16) ? (void *)cuGetProcAddress_v2 : dlsym(RTLD_DEFAULT, symbol);
  if (status) *status = *out ? 0 : 1;
  return *out ? 0 : 500; }

/* A stand-in for the driver's libnvidia-ml.so.1: NVML's C ABI over two GPUs whose figures are
 * functions of the number of calls. GPU 1 supports less, as older cards do. STANDIN_NVML=broken:
 * nvmlInit_v2 fails, as it does when library and driver are of different versions. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, INVALID = 2, NOT_SUPPORTED = 3, TIMEOUT = 10, MISMATCH = 18 };
typedef struct gpu { int index; unsigned long long energy_mj; } *device;
typedef struct { unsigned gpu, memory; } utilisation;
typedef struct { unsigned long long total, free, used; } memory;
typedef struct {
  unsigned id, scope; long long at_us, latency_us; unsigned kind; int status;
  union { double d; unsigned ui; unsigned long ul; unsigned long long ull; long long sll; } value;
} field;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } process;
typedef struct {
  device gpu; unsigned long long kind, data; unsigned gpu_instance, compute_instance;
} event;

static struct gpu gpus[2] = {{0, 1000}, {1, 5000}};
static int xids_left = 1, set, registered;

const char *nvmlErrorString(int status) {
  return status == MISMATCH ? "Driver/library version mismatch" : "some error";
}
int nvmlInit_v2(void) {
  const char *how = getenv("STANDIN_NVML");
  return how && !strcmp(how, "broken") ? MISMATCH : SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, device *gpu) {
  if (index > 1) return INVALID;
  *gpu = &gpus[index];
  return SUCCESS;
}
int nvmlDeviceGetUtilizationRates(device gpu, utilisation *use) {
  use->gpu = 90 + gpu->index; use->memory = 40;
  return SUCCESS;
}
int nvmlDeviceGetMemoryInfo(device gpu, memory *m) {
  m->total = 80ull << 30; m->used = (10ull + gpu->index) << 30; m->free = m->total - m->used;
  return SUCCESS;
}
int nvmlDeviceGetTemperature(device gpu, int sensor, unsigned *c) {
  (void)gpu; *c = 61;
  return sensor ? INVALID : SUCCESS;
}
int nvmlDeviceGetClockInfo(device gpu, int kind, unsigned *mhz) {
  (void)gpu; *mhz = kind == 1 ? 1410 : 1593;
  return SUCCESS;
}
int nvmlDeviceGetPowerUsage(device gpu, unsigned *mw) { (void)gpu; *mw = 300000; return SUCCESS; }
int nvmlDeviceGetTotalEnergyConsumption(device gpu, unsigned long long *mj) {
  *mj = gpu->energy_mj += 300000;
  return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(device gpu, unsigned long long *bits) {
  *bits = gpu->index ? 0x40 : 0x1;
  return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(device gpu, int kind, int counter, unsigned long long *count) {
  if (counter || gpu->index) return NOT_SUPPORTED;
  *count = kind ? 0 : 7;
  return SUCCESS;
}
int nvmlDeviceGetRemappedRows(device gpu, unsigned *corrected, unsigned *uncorrected,
                              unsigned *pending, unsigned *failed) {
  if (gpu->index) return NOT_SUPPORTED;
  *corrected = 1; *uncorrected = 2; *pending = 1; *failed = 1;
  return SUCCESS;
}
int nvmlDeviceGetPcieReplayCounter(device gpu, unsigned *count) {
  *count = 3u + (unsigned)gpu->index;
  return SUCCESS;
}
int nvmlDeviceGetNvLinkState(device gpu, unsigned link, unsigned *active) {
  if (gpu->index) return NOT_SUPPORTED;
  *active = link < 2;
  return SUCCESS;
}
int nvmlDeviceGetNvLinkErrorCounter(device gpu, unsigned link, int kind,
                                    unsigned long long *count) {
  (void)gpu; *count = link * 10 + (unsigned)kind;
  return SUCCESS;
}
int nvmlDeviceGetFieldValues(device gpu, int count, field *fields) {
  for (int i = 0; i < count; i++) {
    field *f = &fields[i];
    f->status = SUCCESS; f->kind = 3; f->value.ull = 0;
    if (f->id == 197 || f->id == 198) f->value.ull = (5ull << 32) + f->id;
    else if ((f->id == 138 || f->id == 139) && !gpu->index) /* of link 0, or of all three */
      f->value.ull = f->scope == ~0u ? f->id : f->scope ? 0 : f->id / 3;
    else f->status = NOT_SUPPORTED;
    if (gpu->index && f->id == 198) { f->kind = 1; f->value.ui = 7; }
  }
  return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, process *found) {
  if (*count < 3) return 7; /* NVML_ERROR_INSUFFICIENT_SIZE */
  *count = gpu->index ? 1 : 3;
  for (unsigned i = 0; i < *count; i++)
    found[i] = (process){100 + i, (i + 1ull) << 30, ~0u, ~0u};
  if (gpu->index) found[0].used = ~0ull; /* NVML_VALUE_NOT_AVAILABLE */
  return SUCCESS;
}
int nvmlEventSetCreate(void **events) { *events = &set; return SUCCESS; }
int nvmlEventSetFree(void *events) { return events == &set ? SUCCESS : INVALID; }
int nvmlDeviceRegisterEvents(device gpu, unsigned long long kinds, void *events) {
  if (events != &set || kinds != 8) return INVALID;
  registered |= 1 << gpu->index;
  return SUCCESS;
}
int nvmlEventSetWait_v2(void *events, event *happened, unsigned ms) {
  if (events != &set || ms || registered != 3 || !xids_left) return TIMEOUT;
  xids_left--;
  happened->gpu = &gpus[1]; happened->kind = 8; happened->data = 79;
  return SUCCESS;
}

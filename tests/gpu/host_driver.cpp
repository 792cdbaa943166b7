// CUDA's driver interface with the processor as its device: memory is the heap's, a module is a shared library.
// Every call is checked as the driver's manual demands, and counted.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <string>
#include <unistd.h>
#include <vector>

typedef uint64_t Address;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
       NOT_FOUND = 500, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

typedef bool (*Launch)(void**, const unsigned*, const unsigned*);
struct Function { Launch launch; const unsigned* sizes; unsigned threads; };
// What a graph starts: a function with copies of its parameters.
struct Node { Function* function; unsigned grid[3], block[3]; std::vector<uint64_t> values; };
struct Graph { std::vector<Node> nodes; };
struct Stream { Graph* recorded = nullptr; bool broken = false; };
struct Event { std::chrono::steady_clock::time_point time; };

static int context;  // its address is the context
static thread_local void* current = nullptr;
static std::map<Address, size_t> memory;
static std::map<std::string, long> calls;
static thread_local Stream* recording = nullptr;
static long graphs = 0;  // that were made and not given back

static int setting(const char* name, int otherwise) {
  const char* text = getenv(name);
  return text ? atoi(text) : otherwise;
}

// Whether so many bytes lie within one allocation.
static bool within(Address first, size_t bytes) {
  auto found = memory.upper_bound(first);
  return found != memory.begin() && (--found, first + bytes <= found->first + found->second);
}

// A bit of HOST_GPU_FAIL lets one of the steps of a recording fail.
enum { FAIL_BEGIN = 1, FAIL_LAUNCH = 2, FAIL_END = 4, FAIL_INSTANTIATE = 8 };
static bool fails(int bit) { return setting("HOST_GPU_FAIL", 0) & bit; }

#define ENTER(name) ++calls[name]; if (current != &context) return INVALID_CONTEXT
// What waits, or works with the default stream, must not be called by a thread that records.
#define ENTER_ALONE(name) ENTER(name); if (recording) { recording->broken = true; return CAPTURE_UNSUPPORTED; }

extern "C" {
long host_calls(const char* name) { return calls[name]; }
void host_forget() { calls.clear(); }
long host_graphs() { return graphs; }
long host_allocations() { return long(memory.size()); }

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : setting("HOST_GPU_INIT", OK); }
int cuDeviceGetCount(int* count) { *count = setting("HOST_GPU_COUNT", 1); return OK; }
int cuDeviceGetName(char* name, int length, int) { snprintf(name, length, "a processor"); return OK; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  int number = setting("HOST_GPU_CAPABILITY", 80);
  if (attribute != 75 && attribute != 76) return INVALID_VALUE;
  *value = attribute == 75 ? number / 10 : number % 10;
  return OK;
}
int cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR"; return OK; }
int cuGetErrorString(int status, const char** text) {
  *text = status == OUT_OF_MEMORY ? "out of memory" : status == INVALID_IMAGE ? "invalid image" : "an error";
  return OK;
}
int cuDevicePrimaryCtxRetain(void** made, int) { *made = &context; return OK; }
int cuCtxSetCurrent(void* wanted) { current = wanted; return wanted == &context ? OK : INVALID_CONTEXT; }
int cuCtxSynchronize() { ENTER_ALONE("synchronize"); return OK; }

int cuMemAlloc_v2(Address* address, size_t bytes) {
  ENTER_ALONE("allocate");
  if (!bytes) return INVALID_VALUE;
  if (bytes > (size_t)1 << 32) return OUT_OF_MEMORY;
  *address = (Address)aligned_alloc(256, (bytes + 255) / 256 * 256);
  memset((void*)*address, 0xA5, bytes);
  memory[*address] = bytes;
  return OK;
}
int cuMemFree_v2(Address address) {
  ENTER_ALONE("free");
  if (!memory.erase(address)) return INVALID_VALUE;
  free((void*)address);
  return OK;
}
int cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
  ENTER_ALONE("to device");
  if (!within(to, bytes)) return INVALID_VALUE;
  memcpy((void*)to, from, bytes);
  return OK;
}
int cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
  ENTER_ALONE("to host");
  if (!within(from, bytes)) return INVALID_VALUE;
  memcpy(to, (void*)from, bytes);
  return OK;
}
int cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
  ENTER_ALONE("copy");
  if (!within(to, bytes) || !within(from, bytes)) return INVALID_VALUE;
  memmove((void*)to, (void*)from, bytes);
  return OK;
}

int cuModuleLoadDataEx(void** module, const void* image, unsigned count, const int* options, void* const* values) {
  ENTER_ALONE("load");
  if (count != 2 || options[0] != 5 || options[1] != 6) return INVALID_VALUE;
  long bytes;  // a module says its own length; this one in front of the library
  if (memcmp(image, "HOST", 4)) {
    snprintf((char*)values[0], (size_t)values[1], "%.4s is no code of this device", (const char*)image);
    return INVALID_IMAGE;
  }
  memcpy(&bytes, (const char*)image + 8, 8);
  char path[] = "/tmp/tersor-module-XXXXXX";
  int file = mkstemp(path);
  bool whole = write(file, (const char*)image + 16, bytes) == bytes;
  close(file);
  *module = whole ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (whole && !*module) snprintf((char*)values[0], (size_t)values[1], "%s", dlerror());
  unlink(path);
  return *module ? OK : INVALID_IMAGE;
}
int cuModuleUnload(void* module) { ENTER("unload"); return dlclose(module) ? INVALID_VALUE : OK; }
int cuModuleGetFunction(void** function, void* module, const char* name) {
  ENTER("function");
  std::string end = name;
  Launch launch = (Launch)dlsym(module, ("launch_" + end).c_str());
  if (!launch) return NOT_FOUND;
  *function = new Function{launch, (const unsigned*)dlsym(module, ("sizes_" + end).c_str()),
                           *(const unsigned*)dlsym(module, ("threads_" + end).c_str())};
  return OK;
}
int cuLaunchKernel(void* which, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** parameters, void** extra) {
  ENTER("launch");
  auto* function = (Function*)which;
  Node node = {function, {gx, gy, gz}, {bx, by, bz}, {}};
  if (shared || extra || !gx || !gy || !gz || gy > 65535 || gz > 65535) return INVALID_VALUE;
  if (stream != recording) return recording ? CAPTURE_UNSUPPORTED : INVALID_VALUE;
  if (bx * by * bz != function->threads) return INVALID_VALUE;
  for (int i = 0; function->sizes[i]; ++i) {
    unsigned bytes = function->sizes[i] & 255;
    if ((Address)parameters[i] % bytes) return INVALID_VALUE;
    // A pointer has the width of its element behind its own size; the driver does not look, but a kernel would fail.
    unsigned width = function->sizes[i] >> 8;
    if (width && (*(Address*)parameters[i] % width || !within(*(Address*)parameters[i], 1))) return LAUNCH_FAILED;
    node.values.push_back(0);
    memcpy(&node.values.back(), parameters[i], bytes);
  }
  if (!recording) return function->launch(parameters, node.grid, node.block) ? OK : LAUNCH_FAILED;
  if (fails(FAIL_LAUNCH)) return recording->broken = true, CAPTURE_UNSUPPORTED;
  recording->recorded->nodes.push_back(node);
  return OK;
}

// A stream that blocks would, while it is captured, let everyone fail who starts something in the default stream.
int cuStreamCreate(void** stream, unsigned flags) {
  ENTER("stream");
  *stream = new Stream;
  return flags == 1 ? OK : INVALID_VALUE;
}
int cuStreamBeginCapture_v2(void* stream, int mode) {
  ENTER("begin");
  if (!stream || mode != 1 || recording) return INVALID_VALUE;  // the default stream cannot be recorded
  if (fails(FAIL_BEGIN)) return CAPTURE_UNSUPPORTED;
  recording = (Stream*)stream;
  recording->recorded = new Graph;
  recording->broken = false;
  return OK;
}
int cuStreamEndCapture(void* stream, void** graph) {
  ENTER("end");
  if (!recording || stream != recording) return INVALID_VALUE;
  *graph = recording->recorded;
  recording = nullptr;
  if (!((Stream*)stream)->broken && !fails(FAIL_END)) return ++graphs, OK;
  delete (Graph*)*graph;
  *graph = nullptr;
  return CAPTURE_INVALIDATED;
}
int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long flags) {
  ENTER("instantiate");
  if (!graph || flags || fails(FAIL_INSTANTIATE)) return INVALID_VALUE;
  *made = new Graph(*(Graph*)graph);
  ++graphs;
  return OK;
}
int cuGraphDestroy(void* graph) { ENTER("destroy graph"); delete (Graph*)graph; --graphs; return OK; }
int cuGraphExecDestroy(void* graph) { ENTER("destroy graph"); delete (Graph*)graph; --graphs; return OK; }
int cuGraphLaunch(void* graph, void* stream) {
  ENTER_ALONE("graph");
  if (!graph || stream) return INVALID_VALUE;  // only the default stream is in order with copies
  for (auto& node : ((Graph*)graph)->nodes) {
    std::vector<void*> parameters;
    for (auto& value : node.values) parameters.push_back(&value);
    for (int i = 0; node.function->sizes[i]; ++i)  // memory that was given back meanwhile
      if (node.function->sizes[i] >> 8 && !within(node.values[i], 1)) return LAUNCH_FAILED;
    if (!node.function->launch(parameters.data(), node.grid, node.block)) return LAUNCH_FAILED;
  }
  return OK;
}

int cuEventCreate(void** event, unsigned) { ENTER_ALONE("event"); *event = new Event; return OK; }
int cuEventRecord(void* event, void*) { ENTER_ALONE("record"); ((Event*)event)->time = std::chrono::steady_clock::now(); return OK; }
int cuEventElapsedTime(float* milliseconds, void* begin, void* end) {
  ENTER("elapsed");
  auto took = ((Event*)end)->time - ((Event*)begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(took).count();
  return OK;
}
int cuEventDestroy_v2(void* event) { ENTER("destroy"); delete (Event*)event; return OK; }
}

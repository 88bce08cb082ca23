/* A CUDA driver without a device, for tests: it keeps the state that NVIDIA's keeps, checks what it
 * is asked for, and has a function of the test run kernels.
 *
 * Streams are queues. What is put into one is done only when somebody has to wait for it, and then
 * no other queue moves further than an event asks for: work that nobody ordered is done in the
 * worst order there is. Device addresses are not addresses of the host, so what mixes them up fails.
 *
 * Environment, read when it is loaded and by stub_reset():
 *   STUB_CUDA_DEVICES  "9.0:1048576,8.0": compute capability and bytes of every device; "" for none
 *   STUB_CUDA_VERSION  what cuDriverGetVersion says, 12040 by default
 *   STUB_CUDA_FAIL     "cuMemAlloc_v2:2=2,kernel:5=700": the second such call gives error 2, the
 *                      fifth kernel that is run faults with 700
 *   STUB_CUDA_PROCESS  a file of Python to run when a process begins with the driver that has set no
 *                      callback: one that no test is in, a worker for example
 *   CUDA_VISIBLE_DEVICES  as for NVIDIA's driver, numbers only
 * A breach of the rules gives an error code as NVIDIA's driver does, where that does, and is also
 * kept as text: stub_problems(). Every call is noted in stub_log().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_INIT = 3, NO_DEVICE = 100, BAD_DEVICE = 101,
       BAD_IMAGE = 200, BAD_CONTEXT = 201, NO_BINARY = 209, BAD_PTX = 218, OLD_PTX = 222,
       BAD_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, NO_RESOURCES = 701,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALID = 901, CAPTURE_UNMATCHED = 903,
       CAPTURE_IMPLICIT = 906, CAPTURE_THREAD = 908 };
enum { DEVICES = 8, PARAMS = 64, LOG = 1 << 20 };
enum Kind { KERNEL, H2D, D2H, D2D, SET, RECORD, WAIT, GRAPH, RELEASE };
typedef uint64_t Address;

typedef struct Block { Address at; size_t size; char *host; int device, pinned, freed, pooled;
                       struct Block *next; } Block;
typedef struct Context { int device, fault; unsigned retained; struct Stream *own[3]; } Context;
typedef struct Module { Context *context; int unloaded; struct Function *functions; } Module;
typedef struct Function { char name[256]; Module *module; int count; size_t sizes[PARAMS];
                          unsigned block[3]; int dynamic; struct Function *next; } Function;
typedef struct Event { Context *context; int timing, destroyed; uint64_t recorded, done;
                       double time; struct Stream *stream; } Event;
typedef struct Op { enum Kind kind; Function *function; unsigned dims[10]; void *params[PARAMS];
                    Address a, b; void *host; char *copy; size_t size; int value; Event *event;
                    uint64_t mark; struct Stream *from; struct Op *nodes, *next; } Op;
typedef struct Stream { Context *context; int destroyed, blocking; Op *head, *tail;
                        struct Graph *capture; int mode, broken; pthread_t thread;
                        struct Stream *next; } Stream;
typedef struct Graph { Op *nodes, *last; int destroyed, captured; } Graph;
typedef struct Exec { Graph *graph; Op *nodes; int destroyed; } Exec;
typedef struct { Function *function; unsigned grid[3], block[3], shared; void **params, **extra;
                 void *kernel, *context; } NodeParams;
typedef struct { int id, pad; unsigned dims[3]; char rest[52]; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; Stream *stream; Attribute *attributes;
                 unsigned count; } Config;
typedef int (*Callback)(const char *name, int device, const unsigned *dims, void **params,
                        const size_t *sizes, int count);

static pthread_mutex_t lock;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int begun, devices, version = 12040, executing, kernels, by_threads;
static pid_t process;
static int major[DEVICES], minor[DEVICES], own_number[DEVICES];
static size_t total[DEVICES], used[DEVICES];
static Context contexts[DEVICES];
static Block *blocks;
static Stream *streams;
static Address next_address = 0x700000000000;
static double now;
static char calls[LOG], problems[LOG], failing[1024];
static struct { char name[64]; int count; } counts[128];
static Callback callback;
static __thread Context *stack[32];
static __thread int depth;

static void make_lock(void) {
    pthread_mutexattr_t how;
    pthread_mutexattr_init(&how);
    pthread_mutexattr_settype(&how, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&lock, &how);
}

static void add(char *where, const char *format, va_list args) {
    size_t n = strlen(where);
    if (n + 512 < LOG) {
        vsnprintf(where + n, 500, format, args);
        strcat(where, "\n");
    }
}

static int problem(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    add(problems, format, args);
    va_end(args);
    return code;
}

static void note(const char *format, ...) {
    va_list args;
    va_start(args, format);
    add(calls, format, args);
    va_end(args);
}

static int asked_to_fail(const char *name, int count) {
    char *at = failing;
    while ((at = strstr(at, name))) {
        int n = 0, code = 0;
        char *rest = at + strlen(name);
        if ((at == failing || at[-1] == ',') && sscanf(rest, ":%d=%d", &n, &code) == 2 && n == count)
            return code;
        at = rest;
    }
    return 0;
}

static int counted(const char *name) {
    int k = 0;
    while (counts[k].name[0] && strcmp(counts[k].name, name)) k++;
    strcpy(counts[k].name, name);
    return ++counts[k].count;
}

static Context *current(void) { return depth ? stack[depth - 1] : NULL; }

/* What every function begins with. needs: 0 nothing, 1 cuInit, 2 a context. */
static int enter(const char *name, int needs) {
    pthread_once(&once, make_lock);
    pthread_mutex_lock(&lock);
    int code = asked_to_fail(name, counted(name));
    if (code) return code;
    if (needs && (!begun || getpid() != process)) return NOT_INIT;
    if (needs < 2) return OK;
    Context *c = current();
    if (!c) return problem(BAD_CONTEXT, "%s: no context is current", name);
    return c->fault;
}

#define BEGIN(name, needs) int code = enter(#name, needs); if (code) goto end
#define END end: pthread_mutex_unlock(&lock); return code
#define FAIL(...) do { code = problem(__VA_ARGS__); goto end; } while (0)
#define GIVE(...) do { code = (__VA_ARGS__); goto end; } while (0)

/* ------------------------------------------------------------------------- memory */

static Block *find(Address at, size_t size) {
    for (Block *b = blocks; b; b = b->next)
        if (!b->pinned && at >= b->at && at + size <= b->at + b->size) return b;
    return NULL;
}

static Block *find_pinned(const void *at) {
    for (Block *b = blocks; b; b = b->next)
        if (b->pinned && !b->freed && (char *)at >= b->host && (char *)at < b->host + b->size) return b;
    return NULL;
}

void *stub_host(Address at, size_t size, int device) {
    Block *b = find(at, size);
    if (!b) problem(0, "%zu bytes at %lx are in no allocation", size, (unsigned long)at);
    else if (b->freed) problem(0, "%zu bytes at %lx were freed", size, (unsigned long)at);
    else if (b->device != device) problem(0, "%lx is memory of device %d", (unsigned long)at, b->device);
    else return b->host + (at - b->at);
    return NULL;
}

static Block *allocate(size_t size, int device, int pinned) {
    Block *b = calloc(1, sizeof *b);
    b->size = size, b->device = device, b->pinned = pinned, b->next = blocks;
    b->host = malloc(size);
    memset(b->host, 0xA5, size);
    b->at = pinned ? (Address)b->host : next_address;
    next_address += (size + 511) / 512 * 512 + 4096;
    if (!pinned) used[device] += size;
    return blocks = b;
}

static void release(Block *b) {
    b->freed = 1;
    if (!b->pinned) used[b->device] -= b->size;
    if (b->pinned) memset(b->host, 0x5A, b->size); /* whoever still reads it reads that */
}

/* ------------------------------------------------------------------------- doing what is queued */

static int advance(Stream *s);

/* Kernels that are there to fault (compiler/tuning/gpu_faults.py) do so by their names. */
static int do_fault(const char *name) {
    while (!strcmp(name, "fault_hang")) pause();
    return strcmp(name, "fault_segv") ? OK : 700;
}

static int do_kernel(Op *op, Context *c) {
    if (!strncmp(op->function->name, "fault_", 6)) return do_fault(op->function->name);
    int code = asked_to_fail("kernel", ++kernels);
    now += by_threads ? 1e-3 / op->dims[3] : 10e-6;
    if (!code && op->function->module->unloaded)
        code = problem(700, "%s is run after its module was unloaded", op->function->name);
    if (!code && callback)
        code = callback(op->function->name, c->device, op->dims, op->params, op->function->sizes,
                        op->function->count);
    return code;
}

static int until(Event *e, uint64_t mark, Stream *from) {
    while (e->done < mark) {
        if (!from->head) return problem(INVALID, "an event is waited for that nothing records");
        int code = advance(from);
        if (code) return code;
    }
    return OK;
}

static int perform(Op *op, Context *c) {
    void *to, *from;
    switch (op->kind) {
    case KERNEL: return do_kernel(op, c);
    case H2D:
        if (!(to = stub_host(op->a, op->size, c->device))) return 700;
        memcpy(to, op->copy ? op->copy : op->host, op->size);
        return OK;
    case D2H:
        if (!(from = stub_host(op->a, op->size, c->device))) return 700;
        memcpy(op->host, from, op->size);
        return OK;
    case D2D:
        to = stub_host(op->a, op->size, c->device), from = stub_host(op->b, op->size, c->device);
        if (!to || !from) return 700;
        memmove(to, from, op->size);
        return OK;
    case SET:
        if (!(to = stub_host(op->a, op->size, c->device))) return 700;
        memset(to, op->value, op->size);
        return OK;
    case RECORD:
        if (op->event->done < op->mark || !op->mark) op->event->done = op->mark ? op->mark : op->event->recorded;
        op->event->time = now;
        return OK;
    case WAIT: return until(op->event, op->mark, op->from);
    case RELEASE: release(find(op->a, 1)); return OK;
    case GRAPH:
        for (Op *n = op->nodes; n; n = n->next) {
            int code = perform(n, c);
            if (code) return code;
        }
        return OK;
    }
    return INVALID;
}

/* Do the first thing in a stream. */
static int advance(Stream *s) {
    Op *op = s->head;
    Context *c = s->context;
    if (c->fault) return c->fault;
    executing++;
    int code = perform(op, c);
    executing--;
    if (s->head == op) {
        s->head = op->next;
        if (!s->head) s->tail = NULL;
    }
    if (code) c->fault = code;
    return code;
}

static int drain(Stream *s) {
    int code = s->context->fault;
    while (!code && s->head) code = advance(s);
    return code;
}

static int drain_all(Context *c) {
    int code = c->fault;
    if (executing) return code; /* from a finaliser inside of a kernel */
    for (Stream *s = streams; s && !code; s = s->next)
        if (s->context == c) code = drain(s);
    return code;
}

/* ------------------------------------------------------------------------- streams and capture */

static Stream *new_stream(Context *c, int blocking) {
    Stream *s = calloc(1, sizeof *s);
    s->context = c, s->blocking = blocking, s->next = streams;
    return streams = s;
}

/* The stream that a handle means; NULL after noting what is wrong. */
static Stream *stream_of(Stream *handle, const char *name) {
    Context *c = current();
    uintptr_t small = (uintptr_t)handle;
    if (small <= 2) {
        int k = small == 2 ? 2 : 1;
        if (!c->own[k]) c->own[k] = new_stream(c, 1);
        return c->own[k];
    }
    for (Stream *s = streams; s; s = s->next)
        if (s == handle) {
            if (s->destroyed) problem(0, "%s: the stream was destroyed", name);
            else if (s->context != c) problem(0, "%s: the stream is of another context", name);
            else return s;
            return NULL;
        }
    problem(0, "%s: %p is no stream", name, (void *)handle);
    return NULL;
}

#define STREAM(handle) Stream *s = stream_of(handle, __func__); if (!s) GIVE(BAD_HANDLE)

static Op *new_op(enum Kind kind) {
    Op *op = calloc(1, sizeof *op);
    op->kind = kind;
    return op;
}

static int put(Stream *s, Op *op) {
    op->next = NULL;
    if (s->capture) {
        if (s->broken) return CAPTURE_INVALID;
        Graph *g = s->capture;
        if (g->last) g->last->next = op; else g->nodes = op;
        g->last = op;
        return OK;
    }
    if (s->tail) s->tail->next = op; else s->head = op;
    s->tail = op;
    return OK;
}

/* A call that a capture forbids, by its mode: to all threads, to its own thread, to nobody. */
static int unsafe(const char *name) {
    for (Stream *s = streams; s; s = s->next)
        if (s->capture && (s->mode == 0 || (s->mode == 1 && pthread_equal(s->thread, pthread_self())))) {
            s->broken = 1;
            return problem(CAPTURE_UNSUPPORTED, "%s while a stream is captured", name);
        }
    return OK;
}

static int refuse_capture(Stream *s, const char *name) {
    if (!s->capture) return OK;
    s->broken = 1;
    return problem(CAPTURE_UNSUPPORTED, "%s on a stream that is captured", name);
}

/* ------------------------------------------------------------------------- the test's side */

void stub_set_callback(Callback f) { callback = f; }
const char *stub_log(void) { return calls; }
const char *stub_problems(void) { return problems; }
size_t stub_used(int device) { return used[device]; }
int stub_depth(void) { return depth; }
void stub_clear_log(void) { calls[0] = problems[0] = 0; }

void stub_cost_by_threads(int yes) { by_threads = yes; } /* the more of them, the faster a kernel */

size_t stub_pinned(void) {
    size_t sum = 0;
    for (Block *b = blocks; b; b = b->next) sum += b->pinned && !b->freed ? b->size : 0;
    return sum;
}

void stub_fail(const char *what) { snprintf(failing, sizeof failing, "%s", what); memset(counts, 0, sizeof counts); kernels = 0; }

/* Leave the devices that CUDA_VISIBLE_DEVICES names, in its order, up to the first that is none. */
static void show_some(void) {
    const char *shown = getenv("CUDA_VISIBLE_DEVICES");
    if (!shown) return;
    int a[DEVICES], b[DEVICES], all = devices, number, n;
    size_t sizes[DEVICES];
    memcpy(a, major, sizeof a), memcpy(b, minor, sizeof b), memcpy(sizes, total, sizeof sizes);
    for (devices = 0; devices < DEVICES && sscanf(shown, "%d%n", &number, &n) == 1; devices++) {
        if (number < 0 || number >= all) break;
        major[devices] = a[number], minor[devices] = b[number], total[devices] = sizes[number];
        own_number[devices] = number, contexts[devices].device = devices;
        shown += n;
        shown += *shown == ',';
    }
}

__attribute__((constructor)) void stub_reset(void) {
    pthread_once(&once, make_lock);
    const char *text = getenv("STUB_CUDA_DEVICES"), *fail = getenv("STUB_CUDA_FAIL");
    const char *number = getenv("STUB_CUDA_VERSION");
    begun = devices = executing = depth = by_threads = 0;
    blocks = NULL, streams = NULL, callback = NULL, now = 0;
    calls[0] = problems[0] = 0;
    memset(contexts, 0, sizeof contexts), memset(used, 0, sizeof used);
    stub_fail(fail ? fail : "");
    version = number ? atoi(number) : 12040;
    char copy[256], *at, *rest = copy;
    snprintf(copy, sizeof copy, "%s", text ? text : "9.0");
    while ((at = strtok_r(rest, ",", &rest)) && devices < DEVICES) {
        unsigned long size = 1ul << 30;
        if (sscanf(at, "%d.%d:%lu", &major[devices], &minor[devices], &size) < 2) break;
        total[devices] = size, own_number[devices] = devices, contexts[devices].device = devices, devices++;
    }
    show_some();
}

/* ------------------------------------------------------------------------- the driver's functions */

/* Have Python run a file, in a process that is Python's. */
static void run_python(const char *path) {
    int (*take)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    int (*run)(const char *) = (int (*)(const char *))dlsym(RTLD_DEFAULT, "PyRun_SimpleString");
    void (*give)(int) = (void (*)(int))dlsym(RTLD_DEFAULT, "PyGILState_Release");
    char text[1024];
    snprintf(text, sizeof text, "import runpy; runpy.run_path(r'%s')", path);
    if (!take || !run || !give) return;
    int state = take();
    if (run(text)) problem(0, "%s fails", path);
    give(state);
}

int cuInit(unsigned flags) {
    BEGIN(cuInit, 0);
    if (begun && getpid() != process) GIVE(NOT_INIT);
    if (!devices) GIVE(NO_DEVICE);
    if (!callback && getenv("STUB_CUDA_PROCESS")) run_python(getenv("STUB_CUDA_PROCESS"));
    begun = 1, process = getpid();
    END;
}

int cuDriverGetVersion(int *out) { BEGIN(cuDriverGetVersion, 0); *out = version; END; }

static const struct { int code; const char *name, *text; } names[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"}, {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
};

int cuGetErrorName(int error, const char **out) {
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (names[k].code == error) { *out = names[k].name; return OK; }
    return INVALID;
}

int cuGetErrorString(int error, const char **out) {
    for (size_t k = 0; k < sizeof names / sizeof *names; k++)
        if (names[k].code == error) { *out = names[k].text; return OK; }
    return INVALID;
}

int cuDeviceGetCount(int *out) { BEGIN(cuDeviceGetCount, 1); *out = devices; END; }

int cuDeviceGet(int *out, int number) {
    BEGIN(cuDeviceGet, 1);
    if (number < 0 || number >= devices) GIVE(BAD_DEVICE);
    *out = number;
    END;
}

int cuDeviceGetName(char *out, int size, int device) {
    BEGIN(cuDeviceGetName, 1);
    snprintf(out, size, "Stub %d.%d", major[device], minor[device]);
    END;
}

int cuDeviceGetUuid_v2(unsigned char *out, int device) {
    BEGIN(cuDeviceGetUuid_v2, 1);
    memset(out, 0, 16);
    out[0] = 'S', out[15] = own_number[device];
    END;
}

int cuDeviceTotalMem_v2(size_t *out, int device) { BEGIN(cuDeviceTotalMem_v2, 1); *out = total[device]; END; }

int cuDeviceGetAttribute(int *out, int attribute, int device) {
    BEGIN(cuDeviceGetAttribute, 1);
    switch (attribute) {
    case 75: *out = major[device]; break;
    case 76: *out = minor[device]; break;
    case 16: *out = 4; break;
    case 13: *out = 1000000; break;
    case 36: *out = 1000000; break;
    case 37: *out = 1024; break;
    case 38: *out = 1 << 20; break;
    case 115: *out = 1; break;
    case 97: *out = 232448; break;
    default: FAIL(INVALID, "the stub has no attribute %d", attribute);
    }
    END;
}

int cuDevicePrimaryCtxRetain(Context **out, int device) {
    BEGIN(cuDevicePrimaryCtxRetain, 1);
    contexts[device].retained++;
    *out = &contexts[device];
    END;
}

int cuCtxPushCurrent_v2(Context *c) {
    BEGIN(cuCtxPushCurrent_v2, 1);
    if (c < contexts || c >= contexts + devices || !c->retained) FAIL(BAD_CONTEXT, "push of no context");
    stack[depth++] = c;
    END;
}

int cuCtxPopCurrent_v2(Context **out) {
    BEGIN(cuCtxPopCurrent_v2, 1);
    if (!depth) FAIL(BAD_CONTEXT, "pop without push");
    *out = stack[--depth];
    END;
}

int cuCtxSynchronize(void) {
    BEGIN(cuCtxSynchronize, 2);
    if ((code = unsafe("cuCtxSynchronize"))) goto end;
    note("cuCtxSynchronize");
    code = drain_all(current());
    END;
}

int cuMemGetInfo_v2(size_t *free, size_t *all) {
    BEGIN(cuMemGetInfo_v2, 2);
    int d = current()->device;
    *free = total[d] - used[d], *all = total[d];
    END;
}

static int allocated(Address *out, size_t size, int pooled) {
    int d = current()->device;
    if (!size) return problem(INVALID, "an allocation of 0 bytes");
    if (used[d] + size > total[d]) return NO_MEMORY;
    Block *b = allocate(size, d, 0);
    b->pooled = pooled;
    *out = b->at;
    return OK;
}

int cuMemAlloc_v2(Address *out, size_t size) {
    BEGIN(cuMemAlloc_v2, 2);
    if ((code = unsafe("cuMemAlloc"))) goto end;
    note("cuMemAlloc %zu", size);
    code = allocated(out, size, 0);
    END;
}

int cuMemFree_v2(Address at) {
    BEGIN(cuMemFree_v2, 2);
    if ((code = unsafe("cuMemFree"))) goto end;
    Block *b = find(at, 1);
    if (!b || b->at != at) FAIL(INVALID, "cuMemFree of %lx, which was never allocated", (unsigned long)at);
    if (b->freed) FAIL(INVALID, "cuMemFree of %lx again", (unsigned long)at);
    if (b->device != current()->device) FAIL(INVALID, "cuMemFree of another device's memory");
    note("cuMemFree %zu", b->size);
    if ((code = drain_all(current()))) goto end;
    release(b);
    END;
}

int cuMemAllocAsync(Address *out, size_t size, Stream *stream) {
    BEGIN(cuMemAllocAsync, 2);
    STREAM(stream);
    if ((code = refuse_capture(s, "cuMemAllocAsync"))) goto end;
    note("cuMemAllocAsync %zu", size);
    code = allocated(out, size, 1);
    END;
}

int cuMemFreeAsync(Address at, Stream *stream) {
    BEGIN(cuMemFreeAsync, 2);
    STREAM(stream);
    Block *b = find(at, 1);
    if (!b || b->at != at || b->freed) FAIL(INVALID, "cuMemFreeAsync of %lx, which is not allocated", (unsigned long)at);
    if (!b->pooled) FAIL(INVALID, "cuMemFreeAsync of what cuMemAlloc gave");
    note("cuMemFreeAsync %zu", b->size);
    Op *op = new_op(RELEASE);
    op->a = at;
    code = put(s, op);
    END;
}

int cuMemHostAlloc(void **out, size_t size, unsigned flags) {
    BEGIN(cuMemHostAlloc, 2);
    if ((code = unsafe("cuMemHostAlloc"))) goto end;
    if (!size) FAIL(INVALID, "pinned memory of 0 bytes");
    note("cuMemHostAlloc %zu", size);
    *out = allocate(size, current()->device, 1)->host;
    END;
}

int cuMemFreeHost(void *at) {
    BEGIN(cuMemFreeHost, 2);
    if ((code = unsafe("cuMemFreeHost"))) goto end;
    Block *b = find_pinned(at);
    if (!b || b->host != at) FAIL(INVALID, "cuMemFreeHost of %p, which is not pinned memory", at);
    if ((code = drain_all(current()))) goto end;
    release(b);
    END;
}

static int check_range(Address at, size_t size, const char *name) {
    return stub_host(at, size, current()->device) ? OK : problem(INVALID, "%s: see above", name);
}

static int check_pinned(const void *at, size_t size, const char *name) {
    Block *b = find_pinned(at);
    return b && (char *)at + size > b->host + b->size ? problem(INVALID, "%s: outside of pinned memory", name) : OK;
}

int cuMemcpyHtoD_v2(Address to, const void *from, size_t size) {
    BEGIN(cuMemcpyHtoD_v2, 2);
    if ((code = unsafe("cuMemcpyHtoD")) || (code = check_range(to, size, "cuMemcpyHtoD"))) goto end;
    note("cuMemcpyHtoD %zu", size);
    Stream *s = stream_of((Stream *)1, __func__);
    if ((code = drain(s))) goto end;
    Op *op = new_op(H2D); /* pageable memory was read, but nothing says that it is there yet */
    op->a = to, op->copy = memcpy(malloc(size), from, size), op->size = size;
    code = put(s, op);
    END;
}

int cuMemcpyDtoH_v2(void *to, Address from, size_t size) {
    BEGIN(cuMemcpyDtoH_v2, 2);
    if ((code = unsafe("cuMemcpyDtoH")) || (code = check_range(from, size, "cuMemcpyDtoH"))) goto end;
    note("cuMemcpyDtoH %zu", size);
    if ((code = drain(stream_of((Stream *)1, __func__)))) goto end;
    memcpy(to, stub_host(from, size, current()->device), size);
    END;
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, Stream *stream) {
    BEGIN(cuMemcpyHtoDAsync_v2, 2);
    STREAM(stream);
    if ((code = check_range(to, size, __func__)) || (code = check_pinned(from, size, __func__))) goto end;
    note("cuMemcpyHtoDAsync %zu", size);
    Op *op = new_op(H2D);
    op->a = to, op->host = (void *)from, op->size = size;
    if (!find_pinned(from)) op->copy = memcpy(malloc(size), from, size);
    code = put(s, op);
    END;
}

int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, Stream *stream) {
    BEGIN(cuMemcpyDtoHAsync_v2, 2);
    STREAM(stream);
    if ((code = check_range(from, size, __func__)) || (code = check_pinned(to, size, __func__))) goto end;
    note("cuMemcpyDtoHAsync %zu", size);
    Op *op = new_op(D2H);
    op->a = from, op->host = to, op->size = size;
    code = put(s, op);
    if (!code && !s->capture && !find_pinned(to)) code = drain(s);
    END;
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, Stream *stream) {
    BEGIN(cuMemcpyDtoDAsync_v2, 2);
    STREAM(stream);
    if ((code = check_range(to, size, __func__)) || (code = check_range(from, size, __func__))) goto end;
    note("cuMemcpyDtoDAsync %zu", size);
    Op *op = new_op(D2D);
    op->a = to, op->b = from, op->size = size;
    code = put(s, op);
    END;
}

int cuMemsetD8Async(Address to, unsigned char value, size_t size, Stream *stream) {
    BEGIN(cuMemsetD8Async, 2);
    STREAM(stream);
    if ((code = check_range(to, size, __func__))) goto end;
    Op *op = new_op(SET);
    op->a = to, op->value = value, op->size = size;
    code = put(s, op);
    END;
}

int cuPointerGetAttribute(void *out, int attribute, Address at) {
    BEGIN(cuPointerGetAttribute, 1);
    Block *b = find(at, 1);
    if (attribute != 9) FAIL(INVALID, "the stub has no pointer attribute %d", attribute);
    if (!b || b->freed) GIVE(INVALID);
    *(int *)out = b->device;
    END;
}

int cuStreamCreate(Stream **out, unsigned flags) {
    BEGIN(cuStreamCreate, 2);
    *out = new_stream(current(), !(flags & 1));
    END;
}

int cuStreamDestroy_v2(Stream *stream) {
    BEGIN(cuStreamDestroy_v2, 2);
    STREAM(stream);
    if (s->capture) FAIL(CAPTURE_UNSUPPORTED, "a captured stream is destroyed");
    s->destroyed = 1; /* what is in it will be done */
    END;
}

int cuStreamSynchronize(Stream *stream) {
    BEGIN(cuStreamSynchronize, 2);
    STREAM(stream);
    if ((code = refuse_capture(s, "cuStreamSynchronize"))) goto end;
    note("cuStreamSynchronize");
    code = drain(s);
    END;
}

#define EVENT(e) if (!(e) || (e)->destroyed) FAIL(BAD_HANDLE, "%s: the event was destroyed", __func__)

int cuStreamWaitEvent(Stream *stream, Event *e, unsigned flags) {
    BEGIN(cuStreamWaitEvent, 2);
    STREAM(stream);
    EVENT(e);
    if (s->capture) FAIL(CAPTURE_UNSUPPORTED, "the stub captures no cuStreamWaitEvent");
    note("cuStreamWaitEvent");
    if (e->recorded) {
        Op *op = new_op(WAIT);
        op->event = e, op->mark = e->recorded, op->from = e->stream;
        code = put(s, op);
    }
    END;
}

int cuEventCreate(Event **out, unsigned flags) {
    BEGIN(cuEventCreate, 2);
    *out = calloc(1, sizeof **out);
    (*out)->context = current(), (*out)->timing = !(flags & 2);
    END;
}

int cuEventDestroy_v2(Event *e) { BEGIN(cuEventDestroy_v2, 2); EVENT(e); e->destroyed = 1; END; }

static int record(Event *e, Stream *s, int external) {
    Op *op = new_op(RECORD);
    op->event = e;
    if (s->capture && !external) return problem(CAPTURE_UNSUPPORTED, "the stub captures external events only");
    if (!s->capture) op->mark = ++e->recorded;
    else e->recorded = e->recorded ? e->recorded : 1;
    e->stream = s;
    return put(s, op);
}

int cuEventRecord(Event *e, Stream *stream) {
    BEGIN(cuEventRecord, 2);
    STREAM(stream);
    EVENT(e);
    if (e->context != current()) FAIL(BAD_HANDLE, "an event of another context is recorded");
    code = record(e, s, 0);
    END;
}

int cuEventRecordWithFlags(Event *e, Stream *stream, unsigned flags) {
    BEGIN(cuEventRecordWithFlags, 2);
    STREAM(stream);
    EVENT(e);
    code = record(e, s, flags & 1);
    END;
}

int cuEventQuery(Event *e) {
    BEGIN(cuEventQuery, 2);
    EVENT(e);
    if (e->done < e->recorded && e->stream->head) code = advance(e->stream); /* time passes */
    if (!code && e->done < e->recorded) code = NOT_READY;
    END;
}

int cuEventSynchronize(Event *e) {
    BEGIN(cuEventSynchronize, 2);
    EVENT(e);
    note("cuEventSynchronize");
    if (e->recorded) code = until(e, e->recorded, e->stream);
    END;
}

int cuEventElapsedTime(float *out, Event *a, Event *b) {
    BEGIN(cuEventElapsedTime, 2);
    EVENT(a);
    EVENT(b);
    if (!a->timing || !b->timing) FAIL(BAD_HANDLE, "the time of an event that takes none");
    if (!a->recorded || !b->recorded) FAIL(BAD_HANDLE, "the time of an event that was not recorded");
    if (a->done < a->recorded || b->done < b->recorded) GIVE(NOT_READY);
    *out = (float)((b->time - a->time) * 1e3);
    END;
}

/* ------------------------------------------------------------------------- code */

/* Sizes of the parameters of `.entry name(`...; returns where they end. */
static const char *read_params(const char *at, Function *f) {
    const char *end = strchr(at, ')');
    while ((at = strstr(at, ".param ")) && at < end && f->count < PARAMS) {
        const char *stop = strpbrk(at, ",)"), *array = strchr(at, '[');
        size_t bytes = strstr(at, "64") && strstr(at, "64") < stop ? 8 : 4;
        if (array && array < stop) bytes = atoi(array + 1);
        f->sizes[f->count++] = bytes;
        at = stop;
    }
    return end;
}

static int load(Module **out, const char *text, int device) {
    Module *m = calloc(1, sizeof *m);
    m->context = &contexts[device];
    const char *at = text;
    while ((at = strstr(at, ".entry "))) {
        Function *f = calloc(1, sizeof *f);
        sscanf(at + 7, "%255[^( \n]", f->name);
        f->module = m, f->next = m->functions, m->functions = f;
        at = strchr(at, '(') + 1;
        while (*at == ' ' || *at == '\n' || *at == '\t') at++;
        at = *at == ')' ? at : read_params(at, f);
        const char *body = strchr(at, '{'), *threads = strstr(at, ".reqntid ");
        if (threads && body && threads < body) {
            int n = sscanf(threads + 9, "%u, %u, %u", &f->block[0], &f->block[1], &f->block[2]);
            for (; n < 3; n++) f->block[n] = 1;
        }
    }
    *out = m;
    return m->functions ? OK : problem(BAD_IMAGE, "a module without kernels");
}

int cuModuleLoadDataEx(Module **out, const char *image, unsigned count, int *options, void **values) {
    BEGIN(cuModuleLoadDataEx, 2);
    if ((code = unsafe("cuModuleLoadDataEx"))) goto end;
    int d = current()->device, arch = 0, high = 0, low = 0;
    char suffix = 0;
    char *log = NULL;
    size_t room = 0;
    for (unsigned k = 0; k < count; k++) {
        if (options[k] == 5) log = values[k];
        if (options[k] == 6) room = (size_t)values[k];
    }
    const char *target = strstr(image, ".target sm_");
    int binary = image[0] == 0x7f; /* the tests' machine code: this byte, "ELF", and the PTX */
    note("cuModuleLoadDataEx %s", binary ? "cubin" : "ptx");
    if (!target || sscanf(target, ".target sm_%d%c", &arch, &suffix) < 1) {
        if (log) snprintf(log, room, "ptxas: no .target");
        GIVE(BAD_PTX);
    }
    int own = major[d] * 10 + minor[d];
    if (suffix == 'a' ? arch != own : binary ? arch / 10 != major[d] || arch > own : arch > own) GIVE(NO_BINARY);
    sscanf(strstr(image, ".version"), ".version %d.%d", &high, &low);
    int needed = high == 8 ? 12000 + low * 10 : high == 7 ? 11080 : 13000;
    if (!binary && version < needed) GIVE(OLD_PTX);
    code = load(out, image, d);
    END;
}

int cuModuleGetFunction(Function **out, Module *m, const char *name) {
    BEGIN(cuModuleGetFunction, 2);
    if (m->unloaded) FAIL(BAD_HANDLE, "a function of a module that was unloaded");
    for (Function *f = m->functions; f; f = f->next)
        if (!strcmp(f->name, name)) { *out = f; goto end; }
    code = NOT_FOUND;
    END;
}

int cuModuleUnload(Module *m) {
    BEGIN(cuModuleUnload, 2);
    if (m->unloaded) FAIL(BAD_HANDLE, "a module is unloaded again");
    if (m->context != current()) FAIL(BAD_CONTEXT, "a module is unloaded in another context");
    m->unloaded = 1;
    END;
}

int cuFuncSetAttribute(Function *f, int attribute, int value) {
    BEGIN(cuFuncSetAttribute, 2);
    if (attribute == 8) {
        if (value > 232448) GIVE(INVALID);
        f->dynamic = value;
    }
    note("cuFuncSetAttribute %d %d", attribute, value);
    END;
}

static int check_launch(Function *f, const unsigned *grid, const unsigned *block, unsigned shared, void **params) {
    if (f->module->unloaded) return problem(BAD_HANDLE, "%s is launched after its module was unloaded", f->name);
    if (f->module->context != current()) return problem(BAD_CONTEXT, "%s is of another context", f->name);
    for (int k = 0; k < 3; k++) {
        if (!grid[k] || !block[k]) return problem(INVALID, "%s: an empty grid", f->name);
        if (f->block[0] && block[k] != f->block[k]) return problem(INVALID, "%s: .reqntid says %u threads, not %u", f->name, f->block[k], block[k]);
    }
    if ((uint64_t)block[0] * block[1] * block[2] > 1024) return problem(INVALID, "%s: too many threads", f->name);
    if (grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) return problem(INVALID, "%s: too many blocks", f->name);
    if (shared > (unsigned)(f->dynamic ? f->dynamic : 49152)) return problem(INVALID, "%s: %u bytes of shared memory without cuFuncSetAttribute", f->name, shared);
    if (f->count && !params) return problem(INVALID, "%s: no parameters", f->name);
    return OK;
}

static void take_params(Op *op, void **params) {
    for (int k = 0; k < op->function->count; k++)
        op->params[k] = memcpy(malloc(op->function->sizes[k]), params[k], op->function->sizes[k]);
}

static int launched(Function *f, const unsigned *grid, const unsigned *block, unsigned shared,
                    const unsigned *cluster, Stream *s, void **params) {
    int code = check_launch(f, grid, block, shared, params);
    if (code) return code;
    Op *op = new_op(KERNEL);
    op->function = f;
    memcpy(op->dims, grid, 12), memcpy(op->dims + 3, block, 12), op->dims[6] = shared;
    if (cluster) memcpy(op->dims + 7, cluster, 12);
    take_params(op, params);
    return put(s, op);
}

int cuLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream *stream, void **params, void **extra) {
    BEGIN(cuLaunchKernel, 2);
    STREAM(stream);
    note("cuLaunchKernel %s", f->name);
    code = launched(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, NULL, s, params);
    END;
}

int cuLaunchKernelEx(const Config *c, Function *f, void **params, void **extra) {
    BEGIN(cuLaunchKernelEx, 2);
    STREAM(c->stream);
    note("cuLaunchKernelEx %s", f->name);
    const unsigned *cluster = NULL;
    for (unsigned k = 0; k < c->count; k++)
        if (c->attributes[k].id == 4) cluster = c->attributes[k].dims;
    for (int k = 0; cluster && k < 3; k++)
        if (!cluster[k] || c->grid[k] % cluster[k]) FAIL(INVALID, "%s: a grid of %u in clusters of %u", f->name, c->grid[k], cluster[k]);
    code = launched(f, c->grid, c->block, c->shared, cluster, s, params);
    END;
}

/* ------------------------------------------------------------------------- graphs */

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    BEGIN(cuStreamBeginCapture_v2, 2);
    STREAM(stream);
    if ((uintptr_t)stream <= 1) FAIL(CAPTURE_IMPLICIT, "capture of the legacy stream");
    if (s->capture) FAIL(CAPTURE_UNSUPPORTED, "a stream is captured twice");
    note("cuStreamBeginCapture");
    s->capture = calloc(1, sizeof *s->capture);
    s->mode = mode, s->thread = pthread_self(), s->broken = 0;
    END;
}

int cuStreamGetCaptureInfo_v2(Stream *stream, int *status, uint64_t *id, Graph **graph, Op ***last, size_t *count) {
    BEGIN(cuStreamGetCaptureInfo_v2, 2);
    STREAM(stream);
    *status = s->capture ? 1 + s->broken : 0;
    if (s->capture && graph) *graph = s->capture;
    if (s->capture && last) *last = &s->capture->last, *count = s->capture->last != NULL;
    END;
}

int cuStreamEndCapture(Stream *stream, Graph **out) {
    BEGIN(cuStreamEndCapture, 2);
    STREAM(stream);
    if (!s->capture) FAIL(CAPTURE_UNMATCHED, "the end of a capture that did not begin");
    if (s->mode != 2 && !pthread_equal(s->thread, pthread_self())) FAIL(CAPTURE_THREAD, "a capture ends in another thread");
    note("cuStreamEndCapture");
    *out = s->broken ? NULL : s->capture;
    s->capture = NULL;
    code = s->broken ? CAPTURE_INVALID : OK;
    END;
}

static Op *copied(const Op *from) {
    Op *first = NULL, **end = &first;
    for (; from; from = from->next) {
        Op *op = malloc(sizeof *op);
        *op = *from;
        if (op->kind == KERNEL) take_params(op, (void **)from->params);
        *end = op, end = &op->next;
    }
    *end = NULL;
    return first;
}

int cuGraphInstantiateWithFlags(Exec **out, Graph *g, unsigned long long flags) {
    BEGIN(cuGraphInstantiateWithFlags, 2);
    if (!g || g->destroyed) FAIL(INVALID, "a graph that is none is instantiated");
    note("cuGraphInstantiate");
    *out = calloc(1, sizeof **out);
    (*out)->graph = g, (*out)->nodes = copied(g->nodes);
    END;
}

int cuGraphExecKernelNodeSetParams_v2(Exec *e, Op *node, const NodeParams *p) {
    BEGIN(cuGraphExecKernelNodeSetParams_v2, 2);
    if (e->destroyed || e->graph->destroyed) FAIL(INVALID, "parameters of a graph that was destroyed");
    Op *mine = e->nodes;
    for (Op *n = e->graph->nodes; n && n != node; n = n->next) mine = mine->next;
    if (!mine || mine->kind != KERNEL) FAIL(INVALID, "parameters of what is no kernel of the graph");
    if (mine->function != p->function) FAIL(INVALID, "another function in a graph's node");
    if ((code = check_launch(p->function, p->grid, p->block, p->shared, p->params))) goto end;
    note("cuGraphExecKernelNodeSetParams %s", p->function->name);
    memcpy(mine->dims, p->grid, 12), memcpy(mine->dims + 3, p->block, 12), mine->dims[6] = p->shared;
    take_params(mine, p->params);
    END;
}

int cuGraphLaunch(Exec *e, Stream *stream) {
    BEGIN(cuGraphLaunch, 2);
    STREAM(stream);
    if (e->destroyed) FAIL(INVALID, "a graph is launched after it was destroyed");
    if (s->capture) FAIL(CAPTURE_UNSUPPORTED, "the stub captures no graphs");
    note("cuGraphLaunch");
    Op *op = new_op(GRAPH);
    op->nodes = copied(e->nodes), op->host = e;
    for (Op *n = op->nodes; n; n = n->next)
        if (n->kind == RECORD) n->mark = ++n->event->recorded, n->event->stream = s;
    code = put(s, op);
    END;
}

int cuGraphDestroy(Graph *g) {
    BEGIN(cuGraphDestroy, 2);
    if (g->destroyed) FAIL(INVALID, "a graph is destroyed again");
    g->destroyed = 1;
    END;
}

int cuGraphExecDestroy(Exec *e) {
    BEGIN(cuGraphExecDestroy, 2);
    if (e->destroyed) FAIL(INVALID, "a graph is destroyed again");
    for (Stream *s = streams; s; s = s->next)
        for (Op *op = s->head; op; op = op->next)
            if (op->kind == GRAPH && op->host == e) FAIL(INVALID, "a graph is destroyed before it has run");
    e->destroyed = 1;
    END;
}

/* A descriptor here is its arguments: address, type, rank, swizzle, then dims, strides, box. */
int cuTensorMapEncodeTiled(uint64_t *out, int type, unsigned rank, Address at, const uint64_t *dims,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    BEGIN(cuTensorMapEncodeTiled, 1);
    if ((uintptr_t)out % 64) FAIL(INVALID, "a descriptor at %p, no multiple of 64", (void *)out);
    if (at % 16) FAIL(INVALID, "a descriptor of %lx, no multiple of 16", (unsigned long)at);
    if (rank < 1 || rank > 5) FAIL(INVALID, "a descriptor of %u axes", rank);
    for (unsigned k = 0; k < rank; k++) {
        if (!dims[k] || dims[k] > 1ull << 32 || !box[k] || box[k] > 256 || steps[k] < 1 || steps[k] > 8) FAIL(INVALID, "a descriptor's axis %u: %lu in boxes of %u", k, (unsigned long)dims[k], box[k]);
        if (k + 1 < rank && (strides[k] % 16 || strides[k] >> 40)) FAIL(INVALID, "a descriptor's stride of %lu bytes", (unsigned long)strides[k]);
    }
    static const unsigned char bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}, span[] = {0, 32, 64, 128};
    if (type < 0 || type > 12 || swizzle < 0 || swizzle > 3) FAIL(INVALID, "a descriptor of type %d, swizzle %d", type, swizzle);
    unsigned row = box[0] * bytes[type];
    if (row % 16 || (swizzle && row > span[swizzle])) FAIL(INVALID, "a descriptor's rows of %u bytes, swizzle %d", row, swizzle);
    if (interleave || fill || promotion < 0 || promotion > 3) FAIL(INVALID, "a descriptor that the stub does not know");
    memset(out, 0, 128);
    out[0] = at, out[1] = type | rank << 8 | swizzle << 16;
    for (unsigned k = 0; k < rank; k++) out[2 + k] = dims[k], out[7 + k] = k + 1 < rank ? strides[k] : 0;
    for (unsigned k = 0; k < rank && k < 4; k++) out[12 + k] = box[k];
    END;
}

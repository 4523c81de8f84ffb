// Makes a thread see a processor without AVX-512 and AMX, for libraries that ask CPUID and have no switch.
//
// Linux lets a thread fault at CPUID (arch_prctl(2), ARCH_SET_CPUID); the handler answers in its place. It stays, since
// threads that were started meanwhile go on faulting.
#include <cpuid.h>
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

constexpr int kSetCpuid = 0x1012;  // ARCH_SET_CPUID

// Of leaf 7 (Intel SDM, volume 2A, table 3-8): F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ; 4VNNIW
// 4FMAPS VP2INTERSECT AMX-BF16 FP16 AMX-TILE AMX-INT8. Of its subleaf 1: BF16 AMX-FP16.
constexpr unsigned kEbx = 0xDC230000, kEcx = 0x5842, kEdx = 0x03C0010C, kEax1 = 0x00200020;

struct sigaction before;
bool installed = false;

long set_cpuid(unsigned long allowed) {
  return syscall(SYS_arch_prctl, kSetCpuid, allowed);
}

void answer(int, siginfo_t*, void* context) {
  greg_t* r = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const auto* code = reinterpret_cast<const unsigned char*>(r[REG_RIP]);
  if (code[0] != 0x0F || code[1] != 0xA2) {  // a fault of another kind: it comes again, to whom it came before
    sigaction(SIGSEGV, &before, nullptr);
    return;
  }
  const auto leaf = static_cast<unsigned>(r[REG_RAX]), sub = static_cast<unsigned>(r[REG_RCX]);
  unsigned a, b, c, d;
  set_cpuid(1);
  __cpuid_count(leaf, sub, a, b, c, d);
  set_cpuid(0);
  if (leaf == 7 && sub == 0) b &= ~kEbx, c &= ~kEcx, d &= ~kEdx;
  if (leaf == 7 && sub == 1) a &= ~kEax1;
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

}  // namespace

// 0, or -1 where the kernel or the processor cannot.
extern "C" int avx2_only_begin() {
  if (!installed) {
    struct sigaction now{};
    now.sa_sigaction = answer;
    now.sa_flags = SA_SIGINFO;
    installed = sigaction(SIGSEGV, &now, &before) == 0;
  }
  return static_cast<int>(set_cpuid(0));
}

extern "C" int avx2_only_end() {
  return static_cast<int>(set_cpuid(1));
}

// Whether this thread is told of AVX-512.
extern "C" int sees_avx512() {
  unsigned a, b, c, d;
  __cpuid_count(7, 0, a, b, c, d);
  return (b >> 16) & 1;
}

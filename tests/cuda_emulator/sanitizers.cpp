// Puts what the sanitizers find into the report of the launch. UndefinedBehaviorSanitizer's own library is not linked:
// these are the functions that the compiler calls where it finds undefined behavior.
#include <cstdint>
#include <string>

#include "block.h"
#include "emulator.h"

namespace {

struct Location {
  const char* file;
  std::uint32_t line, column;
};
struct Type {
  std::uint16_t kind, info;
  char name[1];
};
struct TypeMismatch {
  Location where;
  const Type* type;
  unsigned char log_alignment, kind;
};

void found(const char* what, const Location& where) {
  std::string file = where.file;
  emulator::record("undefined behavior: " + (what + (" (" + file.substr(file.rfind('/') + 1))) + ":" +
                   std::to_string(where.line) + ":" + std::to_string(where.column) + ")");
  emulator::stop();
}

}  // namespace

#define HANDLER(name, what)                                      \
  extern "C" void __ubsan_handle_##name(const Location* where) { \
    found(what, *where);                                         \
  }

HANDLER(add_overflow, "signed integer overflow in an addition")
HANDLER(sub_overflow, "signed integer overflow in a subtraction")
HANDLER(mul_overflow, "signed integer overflow in a multiplication")
HANDLER(negate_overflow, "signed integer overflow in a negation")
HANDLER(divrem_overflow, "division by zero, or overflow of a division")
HANDLER(shift_out_of_bounds, "shift by a wrong amount, or of a negative number")
HANDLER(out_of_bounds, "index out of the bounds of an array")
HANDLER(builtin_unreachable, "unreachable code is reached")
HANDLER(missing_return, "a function ends without returning its value")
HANDLER(vla_bound_not_positive, "an array whose length is not positive")
HANDLER(load_invalid_value, "a value that its type does not have")
HANDLER(nonnull_arg, "a null pointer where none may be")
HANDLER(invalid_builtin, "a bit count of zero")
HANDLER(pointer_overflow, "overflow of a pointer")
HANDLER(float_cast_overflow, "a floating point number outside of the range of the integer")

// There if AddressSanitizer is loaded. What it finds is already printed; here the first line is kept, and the first
// place. The thread goes on, because a lock is held here.
extern "C" [[gnu::weak]] void __asan_set_error_report_callback(void (*)(const char*));

void emulator::watch_addresses() {
  if (!__asan_set_error_report_callback) return;
  __asan_set_error_report_callback([](const char* report) {
    const std::string text = report;
    const auto line = [&](const char* start) {
      const std::size_t at = text.find(start);
      return at == std::string::npos ? std::string() : text.substr(at, text.find('\n', at) - at);
    };
    emulator::record(line("AddressSanitizer: ") + "; " + line("#0 "));
    emulator::stop_soon();
  });
}

extern "C" void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, std::uintptr_t pointer) {
  const std::string type = data->type->name;
  const bool misaligned = (pointer & ((std::uintptr_t{1} << data->log_alignment) - 1)) != 0;
  const std::string what = pointer == 0 ? "null pointer to " + type
                           : misaligned ? "misaligned pointer to " + type
                                        : "pointer to memory too small for " + type;
  found(what.c_str(), data->where);
}

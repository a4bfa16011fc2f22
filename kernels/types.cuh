// Element types and conversions that need no instruction of their own.
#ifndef VRUST_TYPES_CUH
#define VRUST_TYPES_CUH

typedef float f32;
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// bfloat16: the upper half of a float.
struct bf16 {
  u16 bits;
};
// IEEE half.
struct f16 {
  u16 bits;
};

// A tensor in global memory as the driver describes it for copies in boxes: cuTensorMapEncodeTiled.
struct alignas(128) TensorMap {
  u64 words[16];
};

// No slot, no sequence, no place: rows of padding.
#define NONE 0xffffffffu

#endif

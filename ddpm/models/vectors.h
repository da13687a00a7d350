/* Vectors of floats, for the files of C in this folder: GCC's and clang's extension of C. */

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define CACHE_LINE 16 /* floats of a line of the cache: so many channels are handled at a time */
#define INLINE static inline __attribute__((always_inline))

/* Neighbouring channels. They need not be aligned in memory. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *from) { return *(const vec *)from; }
INLINE void store(float *to, vec value) { *(vec *)to = value; }

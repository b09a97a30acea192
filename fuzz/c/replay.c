/* Without libFuzzer: runs every file named on the command line, and each again with its bytes changed one at a time. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv)
{
    unsigned long runs = 0;
    const unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], 0, 10) : 0;
    for (int i = 2; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        uint8_t *data = malloc(1 << 20);
        size_t size;
        uint32_t seed = (uint32_t)i;
        if (!file)
            return 2;
        size = fread(data, 1, 1 << 20, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
        for (unsigned k = 0; k < rounds && size; k++, runs++) {
            size_t at;
            uint8_t old, first;
            seed = seed * 1664525u + 1013904223u;
            at = (size_t)(((uint64_t)(seed >> 8) * size) >> 24);
            old = data[at];
            first = data[0];
            data[at] = (uint8_t)(seed >> 4);
            LLVMFuzzerTestOneInput(data, seed & 64 ? size : at + 1);
            data[at] = old;
            data[0] = first;
        }
        free(data);
        runs++;
    }
    printf("%lu\n", runs);
    return 0;
}

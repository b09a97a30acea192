/* Shards and the frames of the serial line: the first byte says which. */
#include "../../edge_runtime/core/port/serial_frame.h"
#include "../../edge_runtime/core/port/shard.h"
#include "../../edge_runtime/core/port/sha256.h"
#include <stdlib.h>
#include <string.h>

static void frames(const uint8_t *data, size_t size)
{
    static fmpq_frame_reader reader;
    static uint8_t again[FMPQ_SERIAL_CODED], room[FMPQ_SERIAL_FRAME];
    fmpq_frame frame;
    memset(&reader, 0, sizeof reader);
    for (size_t i = 0; i < size; i++)
        if (fmpq_frame_feed(&reader, data[i], &frame) == FMPQ_FRAME_WHOLE) {
            if (frame.len > FMPQ_SERIAL_PAYLOAD)
                abort();
            memcpy(room + FMPQ_SERIAL_HEAD, frame.payload, frame.len);
            if (fmpq_frame_code(frame.type, frame.seq, room, frame.len, again) > sizeof again)
                abort();
        }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fmpq_shard shard;
    uint8_t *exact;
    if (!size)
        return 0;
    if (data[0] & 1) {
        frames(data + 1, size - 1);
        return 0;
    }
    exact = malloc(size - 1 ? size - 1 : 1);
    memcpy(exact, data + 1, size - 1);
    if (fmpq_shard_open(exact, size - 1, &shard) == FMPQ_OK && shard.count) {
        uint8_t *image = malloc(shard.image_bytes);
        uint16_t label;
        const uint32_t last = shard.count - 1;
        fmpq_shard_gather(&shard, &last, 1, image, &label);
        free(image);
    }
    free(exact);
    return 0;
}

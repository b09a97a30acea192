#include "serial_frame.h"

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint32_t fmpq_crc32(uint32_t crc, const void *data, size_t len)
{
    static const uint32_t table[16] = {0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
                                       0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c};
    const uint8_t *p = data;
    crc = ~crc;
    while (len--) {
        crc ^= *p++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

static int end_of_frame(fmpq_frame_reader *r, fmpq_frame *out)
{
    const uint32_t len = r->len;
    const int some = r->some, good = !r->broken && !r->left && len >= FMPQ_SERIAL_HEAD + 4;
    r->len = 0;
    r->left = r->code = r->broken = r->some = 0;
    if (!some)
        return FMPQ_FRAME_NONE; /* two zeros in a row */
    if (!good || r->data[1] || fmpq_crc32(0, r->data, len - 4) != get32(r->data + len - 4))
        return FMPQ_FRAME_DAMAGED;
    out->type = r->data[0];
    out->seq = (uint16_t)(r->data[2] | r->data[3] << 8);
    out->payload = r->data + FMPQ_SERIAL_HEAD;
    out->len = len - FMPQ_SERIAL_HEAD - 4;
    return FMPQ_FRAME_WHOLE;
}

static void put(fmpq_frame_reader *r, uint8_t byte)
{
    if (r->len < sizeof(r->data))
        r->data[r->len++] = byte;
    else
        r->broken = 1;
}

int fmpq_frame_feed(fmpq_frame_reader *r, uint8_t byte, fmpq_frame *out)
{
    if (!byte)
        return end_of_frame(r, out);
    if (r->left) {
        put(r, byte);
        r->left--;
    } else {
        if (r->some && r->code != 255)
            put(r, 0); /* the zero that the block before stood for */
        r->code = byte;
        r->left = (uint8_t)(byte - 1);
    }
    r->some = 1;
    return FMPQ_FRAME_NONE;
}

size_t fmpq_frame_code(uint8_t type, uint16_t seq, uint8_t *frame, uint32_t len, uint8_t *out)
{
    const uint32_t body = FMPQ_SERIAL_HEAD + len, total = body + 4;
    uint32_t crc, block = 1;
    size_t at = 2;
    frame[0] = type;
    frame[1] = 0;
    frame[2] = (uint8_t)seq;
    frame[3] = (uint8_t)(seq >> 8);
    crc = fmpq_crc32(0, frame, body);
    for (uint32_t i = 0; i < 4; i++)
        frame[body + i] = (uint8_t)(crc >> (8 * i));
    out[0] = 0;
    for (uint32_t i = 0; i < total; i++) {
        if (frame[i])
            out[at++] = frame[i];
        if (!frame[i] || at - block == 255) { /* a block ends: its code byte says how long it is */
            out[block] = (uint8_t)(at - block);
            block = (uint32_t)at++;
        }
    }
    out[block] = (uint8_t)(at - block);
    out[at++] = 0;
    return at;
}

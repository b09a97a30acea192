/* Frames of the serial protocol (docs/serial.md): type, a zero, sequence number, payload, CRC-32; COBS between zero bytes.
 * Byte streams may lose, flip and invent bytes: what arrives as a frame is whole, everything else is counted and dropped. */
#ifndef FMPQ_SERIAL_FRAME_H
#define FMPQ_SERIAL_FRAME_H
#include <stddef.h>
#include <stdint.h>

#ifndef FMPQ_SERIAL_PAYLOAD
#define FMPQ_SERIAL_PAYLOAD 512 /* bytes a frame carries at most; at least 128 */
#endif
#define FMPQ_SERIAL_HEAD 4
#define FMPQ_SERIAL_FRAME (FMPQ_SERIAL_HEAD + FMPQ_SERIAL_PAYLOAD + 4)
#define FMPQ_SERIAL_CODED (FMPQ_SERIAL_FRAME + FMPQ_SERIAL_FRAME / 254 + 3) /* with COBS and both zeros */

typedef struct fmpq_frame {
    uint8_t type;
    uint16_t seq;
    uint32_t len;
    const uint8_t *payload;
} fmpq_frame;

typedef struct fmpq_frame_reader {
    uint32_t len;           /* bytes decoded so far */
    uint8_t left, code;     /* of the present COBS block */
    uint8_t broken, some;   /* the bytes since the last zero are no frame; there were some */
    uint8_t data[FMPQ_SERIAL_FRAME];
} fmpq_frame_reader;

enum { FMPQ_FRAME_NONE = 0, FMPQ_FRAME_WHOLE = 1, FMPQ_FRAME_DAMAGED = 2 };

uint32_t fmpq_crc32(uint32_t crc, const void *data, size_t len); /* start with 0 */
/* One byte from the line. WHOLE: *out is a frame that stays until the next call. DAMAGED: bytes came that are none. */
int fmpq_frame_feed(fmpq_frame_reader *r, uint8_t byte, fmpq_frame *out);
/* Writes a frame for the line; `out` holds FMPQ_SERIAL_CODED bytes. `frame` holds FMPQ_SERIAL_HEAD free bytes, the payload and 4 more. */
size_t fmpq_frame_code(uint8_t type, uint16_t seq, uint8_t *frame, uint32_t len, uint8_t *out);
#endif

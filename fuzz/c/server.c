/* The device's side of the serial protocol: requests of type u8, length u16, payload, put into good frames; checksums of what was sent
 * before are put right, so that a changed byte reaches the code behind them. */
#include "../../edge_runtime/core/port/serial_server.h"
#include <stdlib.h>
#include <string.h>

enum { ARENA = 1 << 17, MOST_SAMPLES = 2, MOST_STEPS = 4 };

static void drop(const uint8_t *data, size_t len)
{
    (void)data;
    if (len > FMPQ_SERIAL_CODED)
        abort();
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

/* the checksum at p + 4 over as many bytes as p says, from `at` in the arena */
static void mend(const fmpq_server *s, uint8_t *p, size_t at)
{
    const uint32_t n = get32(p);
    if (at <= s->limit && n <= s->limit - at)
        put32(p + 4, fmpq_crc32(0, s->arena + at, n));
}

static void mend_samples(const fmpq_server *s, uint8_t *p)
{
    const size_t pixels = (size_t)s->program.in_h * s->program.in_w * s->program.in_c, at = (size_t)s->samples_at;
    const uint32_t count = get32(p) % (MOST_SAMPLES + 1);
    const size_t bytes = (count * pixels + 1) / 2 * 2 + 2u * count;
    put32(p, count);
    if (at <= s->limit && bytes <= s->limit - at)
        put32(p + 4, fmpq_crc32(0, s->arena + at, bytes));
}

static void ask(fmpq_server *s, uint8_t type, uint16_t seq, const uint8_t *payload, uint32_t len)
{
    static uint8_t frame[FMPQ_SERIAL_FRAME], line[FMPQ_SERIAL_CODED];
    uint8_t *p = frame + FMPQ_SERIAL_HEAD;
    const size_t mailbox = s->session ? (size_t)s->mem.state : 0;
    memcpy(p, payload, len);
    if (type == FMPQ_PROGRAM && len >= 8)
        mend(s, p, 0);
    if (type == FMPQ_PLANE && len >= 12)
        mend(s, p + 4, mailbox);
    if (type == FMPQ_PARAMS && len >= 20)
        mend(s, p + 12, mailbox);
    if ((type == FMPQ_STEP || type == FMPQ_EVALUATE) && len >= 24)
        mend_samples(s, p + 16);
    const size_t n = fmpq_frame_code(type, seq, frame, len, line);
    for (size_t i = 0; i < n; i++)
        fmpq_server_feed(s, line[i]);
}

/* A program that the arena's batch can train in no time. */
static int small(const fmpq_server *s)
{
    uint64_t work = 0;
    for (uint32_t i = 0; s->session && i < s->program.n_records; i++) {
        const fmpq_record *r = &s->program.rec[i];
        work += (uint64_t)fmpq_record_theta(r) * r->h_out * r->w_out;
    }
    return work < 1 << 20;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static fmpq_server s;
    static const uint8_t hello[8] = {FMPQ_SERIAL_VERSION, 0, 0, 0, 1, 0, 0, 0};
    uint16_t seq = 0;
    int steps = 0;
    s.board = "fuzz";
    s.arena = aligned_alloc(FMPQ_ALIGN, ARENA); /* exactly: a byte more is seen */
    s.limit = ARENA;
    s.send = drop;
    memset(s.arena, 0, ARENA);
    fmpq_server_reset(&s);
    ask(&s, FMPQ_HELLO, 0, hello, sizeof hello);
    while (size >= 3) {
        const uint8_t type = data[0] & 31;
        const uint32_t asked = data[1] | (uint32_t)(data[2] & 1) << 8;
        const uint32_t len = asked < size - 3 ? asked : (uint32_t)(size - 3);
        const int trains = type == FMPQ_STEP || type == FMPQ_EVALUATE;
        if (!trains || (steps++ < MOST_STEPS && small(&s)))
            ask(&s, type, data[0] & 128 ? seq : ++seq, data + 3, len);
        data += 3 + len;
        size -= 3 + len;
    }
    free(s.arena);
    return 0;
}

/* The device's side of the serial protocol (docs/serial.md): a training session that a gateway commands, one request after another.
 * Knows no line: bytes come in through fmpq_server_feed and go out through `send`. All memory is given: the arena holds the session, before
 * and behind it what is on its way in or out. */
#ifndef FMPQ_SERIAL_SERVER_H
#define FMPQ_SERIAL_SERVER_H
#include "serial_frame.h"
#include "shard.h"
#include <fmpq/fmpq.h>

#define FMPQ_SERIAL_VERSION 1

enum fmpq_serial_type { /* a reply has FMPQ_REPLY added */
    FMPQ_HELLO = 1,
    FMPQ_WRITE = 2,
    FMPQ_PROGRAM = 3,
    FMPQ_PLAN = 4,
    FMPQ_OPEN = 5,
    FMPQ_PLANE = 6,
    FMPQ_PARAMS = 7,
    FMPQ_READ_PLANE = 8,
    FMPQ_READ_PARAMS = 9,
    FMPQ_RATES = 10,
    FMPQ_STEP = 11,
    FMPQ_EVALUATE = 12,
    FMPQ_PRUNE = 13,
    FMPQ_FACTS = 14,
    FMPQ_CLOSE = 15,
    FMPQ_SHARD_FACTS = 16,
    FMPQ_PICK = 17,
    FMPQ_REPLY = 0x40,
    FMPQ_DAMAGED = 0x7e, /* something came that is no frame: send it again */
    FMPQ_REFUSED = 0x7f  /* code u16, text */
};

/* Codes of refusals that are the protocol's own; the rest are those of fmpq/errors.inc. */
enum { FMPQ_S_LENGTH = 200, FMPQ_S_TYPE = 201, FMPQ_S_STRANGER = 202, FMPQ_S_ORDER = 203, FMPQ_S_ROOM = 204, FMPQ_S_CRC = 205, FMPQ_S_IMAGES = 206 };

typedef struct fmpq_server_facts {
    uint32_t data, bss, stack_kept, stack_used; /* bytes; 0 where an operating system keeps them */
    uint32_t resident_peak;                     /* bytes; 0 on a board */
} fmpq_server_facts;

typedef struct fmpq_server {
    /* given */
    const char *board;
    uint8_t *arena;
    size_t limit;
    const fmpq_shard *shard; /* images that the device holds, or null */
    void *scratch;           /* fmpq_plan_scratch() bytes, or null: the arena's end */
    void (*send)(const uint8_t *data, size_t len);
    void (*facts)(fmpq_server_facts *out);
    /* own */
    fmpq_session *session;
    fmpq_memory mem;
    uint64_t samples_at; /* where samples lie in the arena, behind the session */
    uint32_t link, steps;
    uint16_t seq;
    uint8_t answered, has_program, type, spare; /* type: of the last reply */
    uint32_t reply_len;
    uint8_t *out;
    uint8_t program_hash[32];
    fmpq_program program;
    fmpq_plan plan;
    fmpq_hyper rates;
    fmpq_frame_reader reader;
    uint8_t frame[FMPQ_SERIAL_FRAME]; /* the last reply, kept to be sent again */
    uint8_t line[FMPQ_SERIAL_CODED];
} fmpq_server;

/* Clears everything but what is given. */
void fmpq_server_reset(fmpq_server *s);
/* One byte from the line; answers what it completes. */
void fmpq_server_feed(fmpq_server *s, uint8_t byte);
#endif

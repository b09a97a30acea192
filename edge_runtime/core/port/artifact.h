/* Reads an artifact file (docs/artifact.md) from memory, in place: nothing is copied, everything is checked. */
#ifndef FMPQ_ARTIFACT_H
#define FMPQ_ARTIFACT_H
#include <fmpq/fmpq.h>

enum {
#define X(name, code, text) name = code,
#include "artifact_errors.inc"
#undef X
};

typedef struct fmpq_artifact_layer {
    uint32_t record, theta, bits;
    fmpq_fx step;
    size_t planes, params; /* offsets in the file */
    size_t plane_bytes, params_bytes;
} fmpq_artifact_layer;

typedef struct fmpq_artifact {
    const uint8_t *data;
    size_t len;
    size_t program, program_len, weights, weights_len; /* offsets and lengths in the file */
    size_t weights_entry;                              /* offset of the weights' entry in the section table */
    size_t manifest_hash;                              /* offset of the weights' hash, 64 hex digits, in the manifest */
    size_t manifest, manifest_len, manifest_entry;
    uint32_t batch;   /* samples of a step; plan.batch holds the micro-batch */
    uint32_t n_layers;
    fmpq_plan plan;
    fmpq_program parsed;
    fmpq_artifact_layer layer[FMPQ_MAX_RECORDS];
} fmpq_artifact;

/* 0, a code of errors.inc or one of artifact_errors.inc. `data` must stay in place. */
int fmpq_artifact_open(const void *data, size_t len, fmpq_artifact *out);
/* Puts all layers into a session made from a->parsed and a->plan. */
int fmpq_artifact_load(const fmpq_artifact *a, fmpq_session *s);
/* Writes the session's weights over those in `file`, a copy of the artifact's bytes, and renews the hashes. The bit-widths must be those of the file. */
int fmpq_artifact_store(const fmpq_artifact *a, const fmpq_session *s, uint8_t *file);
/* Renews the hashes of `file`, a copy of the artifact whose planes and parameters were overwritten. */
void fmpq_artifact_seal(const fmpq_artifact *a, uint8_t *file);
const char *fmpq_port_error_text(int code);
const char *fmpq_port_error_name(int code);
#endif

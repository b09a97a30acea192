/* The u8 activations of one sample: read from a kept residual sum, or computed again from the normalised x-hat. */
#include "pack.h"

uint32_t fmpq_tensor_size(const fmpq_program *p, uint32_t t)
{
    if (!t)
        return (uint32_t)p->in_h * p->in_w * p->in_c;
    return (uint32_t)p->rec[t - 1].h_out * p->rec[t - 1].w_out * p->rec[t - 1].cout;
}

/* An option-A shortcut that at most doubles the channels can shrink its source in place (no write overtakes a read). */
static int shrinks_in_place(const fmpq_program *p, const fmpq_record *r)
{
    return r->cout <= 2u * p->rec[r->skip - 1].cout;
}

uint32_t fmpq_tensor_rows_of(const fmpq_program *p, uint32_t t)
{
    return t ? p->rec[t - 1].h_out : p->in_h;
}

/* rows of a pool's input that `rows` of its output need at most */
static uint32_t pool_rows(const fmpq_record *r, uint32_t rows)
{
    const uint32_t need = (rows - 1) * r->stride + r->kh;
    return need < r->h_in ? need : r->h_in;
}

/* Bytes that fmpq_tensor_rows needs at `out`: the rows, and the larger ones on the way to them. `kept`: residual sums are read from buffers, at
 * least those before tensor t when `make` asks for t itself to be computed. */
static uint32_t room_of(const fmpq_program *p, uint32_t t, uint32_t rows, int kept, int make)
{
    uint32_t before = 0, room = 0;
    for (; t; make = 0) {
        const fmpq_record *r = &p->rec[t - 1];
        const uint32_t size = rows * r->w_out * r->cout;
        const int sum = r->kind == FMPQ_CONV && r->skip_kind != FMPQ_SKIP_NONE;
        if (sum && kept && !make)
            break;
        room = before + size > room ? before + size : room;
        if (r->kind == FMPQ_CONCAT) {
            const uint32_t a = room_of(p, r->input, rows, kept, 0), b = room_of(p, r->skip, rows, kept, 0);
            before += fmpq_up(size, FMPQ_ALIGN) + (a > b ? a : b);
            return before > room ? before : room;
        }
        if (r->kind == FMPQ_CONV && !sum)
            break;
        if (!sum || (r->skip_kind == FMPQ_SKIP_OPTION_A && !shrinks_in_place(p, r)))
            before += fmpq_up(size, FMPQ_ALIGN);
        if (!sum)
            rows = pool_rows(r, rows);
        else if (r->skip_kind == FMPQ_SKIP_OPTION_A)
            rows = 2 * rows < fmpq_tensor_rows_of(p, r->skip) ? 2 * rows : fmpq_tensor_rows_of(p, r->skip);
        t = sum ? r->skip : r->input;
    }
    return room;
}

uint32_t fmpq_tensor_room(const fmpq_program *p, uint32_t t, uint32_t rows, int kept)
{
    return room_of(p, t, rows, kept, 0);
}

uint32_t fmpq_tensor_make_room(const fmpq_program *p, uint32_t t, uint32_t rows, int kept)
{
    return room_of(p, t, rows, kept, 1);
}

/* out may be in: positions are read before they are overwritten */
static void option_a(const fmpq_record *r, const fmpq_record *from, uint32_t rows, const uint8_t *in, uint8_t *out)
{
    const uint32_t c = from->cout, pad = r->skip_pad_c, w = from->w_out;
    const int zero = from->flags & FMPQ_LINEAR ? 128 : 0;
    for (uint32_t y = 0; y < rows; y++)
        for (uint32_t x = 0; x < r->w_out; x++) {
            uint8_t *o = out + (y * r->w_out + x) * r->cout;
            memmove(o + pad, in + (2 * y * w + 2 * x) * c, c);
            memset(o, zero, pad);
            memset(o + pad + c, zero, r->cout - pad - c);
        }
}

/* rows [y0, y0 + rows) of a pool's output; `in` starts at row in0 of its input */
static void pool(const fmpq_record *r, int32_t y0, int32_t rows, const uint8_t *in, int32_t in0, uint8_t *out)
{
    const int32_t window = r->kh * r->kw;
    for (int32_t y = 0; y < rows; y++)
        for (int32_t x = 0; x < r->w_out; x++)
            for (int32_t c = 0; c < r->cout; c++) {
                int32_t sum = 0, top = 0;
                for (int32_t i = 0; i < r->kh; i++)
                    for (int32_t j = 0; j < r->kw; j++) {
                        const int32_t iy = (y0 + y) * r->stride + i - r->pad, ix = x * r->stride + j - r->pad;
                        int32_t v;
                        if (iy < 0 || ix < 0 || iy >= r->h_in || ix >= r->w_in)
                            continue;
                        v = in[((iy - in0) * r->w_in + ix) * r->cin + c];
                        sum += v;
                        top = v > top ? v : top;
                    }
                out[(y * r->w_out + x) * r->cout + c] = (uint8_t)(r->kind == FMPQ_MAXPOOL ? top : (sum + window / 2) / window);
            }
}

static const uint8_t *pool_of(const fmpq_session *s, const fmpq_record *r, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out)
{
    const int32_t low = (int32_t)(y * r->stride) - r->pad, high = (int32_t)((y + rows - 1) * r->stride) + r->kh - r->pad;
    const int32_t from = low > 0 ? low : 0, to = high < r->h_in ? high : r->h_in;
    const uint8_t *in = fmpq_tensor_rows(s, r->input, sample, (uint32_t)from, (uint32_t)(to - from), out + fmpq_up(rows * r->w_out * r->cout, FMPQ_ALIGN));
    pool(r, (int32_t)y, (int32_t)rows, in, from, out);
    return out;
}

/* rows of tensor t as channels `first` on of concatenation r */
static void place(const fmpq_session *s, const fmpq_record *r, uint32_t t, uint32_t first, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out)
{
    const uint32_t c = s->p->rec[t - 1].cout;
    const int32_t shift = r->t_out - s->p->rec[t - 1].t_out, zero = fmpq_zero(s->p, t);
    const uint8_t *in = fmpq_tensor_rows(s, t, sample, y, rows, out + fmpq_up(rows * r->w_out * r->cout, FMPQ_ALIGN));
    for (uint32_t k = 0; k < rows * r->w_out; k++)
        for (uint32_t i = 0; i < c; i++)
            out[k * r->cout + first + i] = (uint8_t)(fmpq_rshift64(in[k * c + i] - zero, shift) + zero);
}

const uint8_t *fmpq_tensor_rows(const fmpq_session *s, uint32_t t, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out)
{
    const uint32_t i = t - 1;
    const fmpq_record *r = &s->p->rec[i];
    const fmpq_slots *sl = &s->slot[i];
    const size_t at = (size_t)sample * s->d[i].out_size + (size_t)y * r->w_out * r->cout;
    if (r->kind == FMPQ_CONCAT) {
        place(s, r, r->input, 0, sample, y, rows, out);
        place(s, r, r->skip, s->p->rec[r->input - 1].cout, sample, y, rows, out);
        return out;
    }
    if (r->kind != FMPQ_CONV)
        return pool_of(s, r, sample, y, rows, out);
    if (sl->stream != FMPQ_NONE && (!s->backward || sl->stream_in_backward))
        return s->base + sl->stream + at;
    if (s->backward && sl->refilled)
        return s->base + sl->again + at;
    fmpq_tensor_make(s, t, sample, y, rows, out);
    return out;
}

const uint8_t *fmpq_tensor(const fmpq_session *s, uint32_t t, uint32_t sample, uint8_t *out)
{
    return fmpq_tensor_rows(s, t, sample, 0, fmpq_tensor_rows_of(s->p, t), out);
}

void fmpq_tensor_make(const fmpq_session *s, uint32_t t, uint32_t sample, uint32_t y, uint32_t rows, uint8_t *out)
{
    const uint32_t i = t - 1;
    const fmpq_record *r = &s->p->rec[i];
    const uint8_t *skip = NULL;
    int32_t skip_shift = 0, offset = fmpq_zero(s->p, t) << (12 + r->t_out);
    if (r->skip_kind == FMPQ_SKIP_IDENTITY) {
        skip = fmpq_tensor_rows(s, r->skip, sample, y, rows, out);
    } else if (r->skip_kind == FMPQ_SKIP_OPTION_A) {
        const uint32_t all = fmpq_tensor_rows_of(s->p, r->skip), end = 2 * (y + rows) < all ? 2 * (y + rows) : all;
        uint8_t *at = shrinks_in_place(s->p, r) ? out : out + fmpq_up(rows * r->w_out * r->cout, FMPQ_ALIGN);
        option_a(r, &s->p->rec[r->skip - 1], rows, fmpq_tensor_rows(s, r->skip, sample, 2 * y, end - 2 * y, at), out);
        skip = out;
    }
    if (skip) {
        skip_shift = 12 + s->p->rec[r->skip - 1].t_out;
        offset -= fmpq_zero(s->p, r->skip) << skip_shift;
    }
    s->k->act((const int8_t *)(s->base + s->slot[i].xhat) + (size_t)sample * s->d[i].out_size + (size_t)y * r->w_out * r->cout, out,
              (int32_t)(rows * r->w_out), r->cout, fmpq_params_i32(s, i, 0), fmpq_params_i32(s, i, 1), skip, skip_shift, 12 + r->t_out,
              offset);
}

static void image_rows(const fmpq_session *s, const fmpq_record *r, uint32_t sample, const fmpq_geometry *t, fmpq_window win, uint8_t *tile)
{
    const fmpq_program *p = s->p;
    const int32_t h = p->in_h, w = p->in_w, c = p->in_c, pad = p->crop_pad;
    const uint8_t *img = s->images + (size_t)sample * (size_t)(h * w * c);
    const int flat = r->cin != c; /* a hidden linear layer reads the image as one pixel */
    const int32_t rows = flat ? h : win.rows, cols = flat ? w : t->cols, step = flat ? c : t->c;
    int32_t dy = pad, dx = pad, flip = 0;
    if (s->training && (s->plan.crop || s->plan.flip)) {
        const uint32_t draw = fmpq_rand(fmpq_stream_of(s->key, FMPQ_STREAM_CROP), sample);
        if (s->plan.crop) {
            dy = (int32_t)(((draw & 0xffffu) * (uint32_t)(2 * pad + 1)) >> 16);
            dx = (int32_t)((((draw >> 16) & 0x7fffu) * (uint32_t)(2 * pad + 1)) >> 15);
        }
        flip = s->plan.flip && draw >> 31;
    }
    if (flat)
        memset(tile + h * w * c, 0, (size_t)(t->c - h * w * c));
    {
        /* columns [x0, x1) of the tile show the image, [ox + shift] of it, or mirrored */
        const int32_t shift = flip ? pad - dx : dx - pad, low = shift < 0 ? -shift : 0, high = shift > 0 ? w - shift : w;
        const int32_t x0 = low + t->left < cols ? low + t->left : cols, x1 = high + t->left < cols ? high + t->left : cols;
        for (int32_t y = win.have; y < rows; y++) {
            const int32_t oy = y + win.from - t->top, iy = oy + dy - pad;
            const int inside = oy >= 0 && oy < h && iy >= 0 && iy < h;
            uint8_t *o = tile + y * cols * step;
            for (int32_t x = 0; x < cols; x++, o += step) {
                const int32_t ix = flip ? w - 1 - (x - t->left + shift) : x - t->left + shift;
                const uint8_t *px = inside && x >= x0 && x < x1 ? img + (iy * w + ix) * c : p->mean;
                if (c == 3 && step == 4) {
                    o[0] = px[0];
                    o[1] = px[1];
                    o[2] = px[2];
                    o[3] = 0;
                    continue;
                }
                for (int32_t k = 0; k < step; k++)
                    o[k] = k < c ? px[k] : 0;
            }
        }
    }
}

static void act_rows(const fmpq_session *s, const fmpq_record *r, uint32_t sample, const fmpq_geometry *t, fmpq_window win, uint8_t *tile,
                     uint8_t *stream)
{
    const int32_t bits = s->plan.act_bits, row = r->w_in * r->cin, tile_row = t->cols * t->c;
    const int32_t first = win.from + win.have - t->top, end = win.from + win.rows - t->top; /* rows of the map */
    const int32_t low = first > 0 ? first : 0, high = end < r->h_in ? end : r->h_in;
    const int flat = r->h_in != (int32_t)fmpq_tensor_rows_of(s->p, r->input); /* a map read as one pixel */
    const int32_t zero = fmpq_zero_read(s->p, r, bits, 0);
    const uint8_t *u;
    if (low >= high || t->c != r->cin) {
        memset(tile + win.have * tile_row, zero, (size_t)(win.rows - win.have) * (size_t)tile_row);
    } else { /* only what is not written below: from the end of each row to the start of the next */
        uint8_t *at = tile + win.have * tile_row;
        for (int32_t y = low; y < high; y++) {
            uint8_t *o = tile + ((y + t->top - win.from) * t->cols + t->left) * t->c;
            memset(at, zero, (size_t)(o - at));
            at = o + row;
        }
        memset(at, zero, (size_t)(tile + win.rows * tile_row - at));
    }
    if (low >= high)
        return;
    u = flat ? fmpq_tensor(s, r->input, sample, stream) : fmpq_tensor_rows(s, r->input, sample, (uint32_t)low, (uint32_t)(high - low), stream);
    for (int32_t y = low; y < high; y++, u += row) {
        uint8_t *o = tile + ((y + t->top - win.from) * t->cols + t->left) * t->c;
        if (t->c == r->cin) {
            s->k->quant(u, o, row, bits);
            continue;
        }
        for (int32_t x = 0; x < r->w_in; x++)
            s->k->quant(u + x * r->cin, o + x * t->c, r->cin, bits);
    }
}

void fmpq_input_rows(const fmpq_session *s, uint32_t record, uint32_t sample, const fmpq_geometry *t, fmpq_window win, uint8_t *tile, uint8_t *stream)
{
    const fmpq_record *r = &s->p->rec[record];
    const size_t tile_row = (size_t)t->cols * (size_t)t->c;
    if (win.have)
        memmove(tile, tile + (size_t)(win.before - win.have) * tile_row, (size_t)win.have * tile_row);
    if (r->input)
        act_rows(s, r, sample, t, win, tile, stream);
    else
        image_rows(s, r, sample, t, win, tile);
}

/* SHA-1 of a short text and Base64: what the answer to a WebSocket handshake needs. */
#include <stdint.h>
#include <string.h>

static uint32_t rolled(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t *h, const unsigned char *p) {
    static const uint32_t k[] = {0x5A827999, 0x6ED9EBA1, 0x8F1BBCDC, 0xCA62C1D6};
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++) w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rolled(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f = i < 20 ? (b & c) | (~b & d) : i < 40 || i >= 60 ? b ^ c ^ d : (b & c) | (b & d) | (c & d);
        uint32_t t = rolled(a, 5) + f + e + k[i / 20] + w[i];
        e = d, d = c, c = rolled(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

/* `text` is at most 119 bytes, so two blocks hold it with its padding. */
static void sha1(const char *text, unsigned char *digest) {
    uint32_t h[] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    unsigned char blocks[128] = {0};
    size_t size = strlen(text), count = size > 55 ? 2 : 1;
    memcpy(blocks, text, size);
    blocks[size] = 0x80;
    blocks[count * 64 - 2] = size * 8 >> 8, blocks[count * 64 - 1] = size * 8;
    for (size_t i = 0; i < count; i++) sha1_block(h, blocks + 64 * i);
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - i % 4 * 8);
}

/* Twenty bytes to twenty-eight characters. */
static void base64(const unsigned char *in, char *out) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < 20; i += 3) {
        uint32_t v = in[i] << 16 | in[i + 1] << 8 | (i + 2 < 20 ? in[i + 2] : 0);
        for (int j = 0; j < 4; j++) *out++ = letters[v >> (18 - 6 * j) & 63];
    }
    out[-1] = '=', *out = 0;
}

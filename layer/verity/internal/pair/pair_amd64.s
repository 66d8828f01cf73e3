#include "textflag.h"

// Two SHA-256 computations at a time with the SHA extensions (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
// SHA256RNDS2, SHA256MSG1, SHA256MSG2). One alone waits for the result of each SHA256RNDS2; the other's fill the gaps.
//
// X1, X2: state of the first (ABEF, CDGH), X3 to X6 its message; X7, X8 and X9 to X12 those of the second. X0 is the message with
// the constants added, as SHA256RNDS2 wants it. X13 is scratch, X14 the byte order of the message.

// ROUNDS does four rounds with the part m of the message; k is the offset of their constants.
#define ROUNDS(k, m, abef, cdgh) \
	MOVO m, X0; \
	PADDD k(AX), X0; \
	SHA256RNDS2 X0, abef, cdgh; \
	PSHUFD $0x0e, X0, X0; \
	SHA256RNDS2 X0, cdgh, abef

// NEXT completes the part after cur.
#define NEXT(prev, cur, next) \
	MOVO cur, X13; \
	PALIGNR $4, prev, X13; \
	PADDD X13, next; \
	SHA256MSG2 cur, next

#define LOAD(offset, from, m) \
	MOVOU offset(from), m; \
	PSHUFB X14, m

// func blocks(state *[4][4]uint32, a, b *byte, n int)
TEXT ·blocks(SB), NOSPLIT, $64-32
	MOVQ state+0(FP), DI
	MOVQ a+8(FP), SI
	MOVQ b+16(FP), DX
	MOVQ n+24(FP), CX
	LEAQ ·constants<>(SB), AX
	MOVOU ·order<>(SB), X14
	MOVOU 0(DI), X1
	MOVOU 16(DI), X2
	MOVOU 32(DI), X7
	MOVOU 48(DI), X8
	TESTQ CX, CX
	JZ done

loop:
	MOVOU X1, s-64(SP)
	MOVOU X2, s-48(SP)
	MOVOU X7, s-32(SP)
	MOVOU X8, s-16(SP)

	LOAD(0, SI, X3)
	LOAD(0, DX, X9)
	ROUNDS(0, X3, X1, X2)
	ROUNDS(0, X9, X7, X8)
	LOAD(16, SI, X4)
	LOAD(16, DX, X10)
	ROUNDS(16, X4, X1, X2)
	ROUNDS(16, X10, X7, X8)
	SHA256MSG1 X4, X3
	SHA256MSG1 X10, X9
	LOAD(32, SI, X5)
	LOAD(32, DX, X11)
	ROUNDS(32, X5, X1, X2)
	ROUNDS(32, X11, X7, X8)
	SHA256MSG1 X5, X4
	SHA256MSG1 X11, X10
	LOAD(48, SI, X6)
	LOAD(48, DX, X12)
	ROUNDS(48, X6, X1, X2)
	ROUNDS(48, X12, X7, X8)
	NEXT(X5, X6, X3)
	NEXT(X11, X12, X9)
	SHA256MSG1 X6, X5
	SHA256MSG1 X12, X11
	ROUNDS(64, X3, X1, X2)
	ROUNDS(64, X9, X7, X8)
	NEXT(X6, X3, X4)
	NEXT(X12, X9, X10)
	SHA256MSG1 X3, X6
	SHA256MSG1 X9, X12
	ROUNDS(80, X4, X1, X2)
	ROUNDS(80, X10, X7, X8)
	NEXT(X3, X4, X5)
	NEXT(X9, X10, X11)
	SHA256MSG1 X4, X3
	SHA256MSG1 X10, X9
	ROUNDS(96, X5, X1, X2)
	ROUNDS(96, X11, X7, X8)
	NEXT(X4, X5, X6)
	NEXT(X10, X11, X12)
	SHA256MSG1 X5, X4
	SHA256MSG1 X11, X10
	ROUNDS(112, X6, X1, X2)
	ROUNDS(112, X12, X7, X8)
	NEXT(X5, X6, X3)
	NEXT(X11, X12, X9)
	SHA256MSG1 X6, X5
	SHA256MSG1 X12, X11
	ROUNDS(128, X3, X1, X2)
	ROUNDS(128, X9, X7, X8)
	NEXT(X6, X3, X4)
	NEXT(X12, X9, X10)
	SHA256MSG1 X3, X6
	SHA256MSG1 X9, X12
	ROUNDS(144, X4, X1, X2)
	ROUNDS(144, X10, X7, X8)
	NEXT(X3, X4, X5)
	NEXT(X9, X10, X11)
	SHA256MSG1 X4, X3
	SHA256MSG1 X10, X9
	ROUNDS(160, X5, X1, X2)
	ROUNDS(160, X11, X7, X8)
	NEXT(X4, X5, X6)
	NEXT(X10, X11, X12)
	SHA256MSG1 X5, X4
	SHA256MSG1 X11, X10
	ROUNDS(176, X6, X1, X2)
	ROUNDS(176, X12, X7, X8)
	NEXT(X5, X6, X3)
	NEXT(X11, X12, X9)
	SHA256MSG1 X6, X5
	SHA256MSG1 X12, X11
	ROUNDS(192, X3, X1, X2)
	ROUNDS(192, X9, X7, X8)
	NEXT(X6, X3, X4)
	NEXT(X12, X9, X10)
	SHA256MSG1 X3, X6
	SHA256MSG1 X9, X12
	ROUNDS(208, X4, X1, X2)
	ROUNDS(208, X10, X7, X8)
	NEXT(X3, X4, X5)
	NEXT(X9, X10, X11)
	ROUNDS(224, X5, X1, X2)
	ROUNDS(224, X11, X7, X8)
	NEXT(X4, X5, X6)
	NEXT(X10, X11, X12)
	ROUNDS(240, X6, X1, X2)
	ROUNDS(240, X12, X7, X8)

	MOVOU s-64(SP), X13
	PADDD X13, X1
	MOVOU s-48(SP), X13
	PADDD X13, X2
	MOVOU s-32(SP), X13
	PADDD X13, X7
	MOVOU s-16(SP), X13
	PADDD X13, X8
	ADDQ $64, SI
	ADDQ $64, DX
	DECQ CX
	JNZ loop

	MOVOU X1, 0(DI)
	MOVOU X2, 16(DI)
	MOVOU X7, 32(DI)
	MOVOU X8, 48(DI)

done:
	RET

// func cpuid(leaf uint32) (b, c uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-16
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL BX, b+8(FP)
	MOVL CX, c+12(FP)
	RET

// func highest() uint32
TEXT ·highest(SB), NOSPLIT, $0-4
	XORL AX, AX
	XORL CX, CX
	CPUID
	MOVL AX, ret+0(FP)
	RET

DATA ·order<>+0(SB)/8, $0x0405060700010203
DATA ·order<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL ·order<>(SB), RODATA|NOPTR, $16

DATA ·constants<>+0(SB)/4, $0x428a2f98
DATA ·constants<>+4(SB)/4, $0x71374491
DATA ·constants<>+8(SB)/4, $0xb5c0fbcf
DATA ·constants<>+12(SB)/4, $0xe9b5dba5
DATA ·constants<>+16(SB)/4, $0x3956c25b
DATA ·constants<>+20(SB)/4, $0x59f111f1
DATA ·constants<>+24(SB)/4, $0x923f82a4
DATA ·constants<>+28(SB)/4, $0xab1c5ed5
DATA ·constants<>+32(SB)/4, $0xd807aa98
DATA ·constants<>+36(SB)/4, $0x12835b01
DATA ·constants<>+40(SB)/4, $0x243185be
DATA ·constants<>+44(SB)/4, $0x550c7dc3
DATA ·constants<>+48(SB)/4, $0x72be5d74
DATA ·constants<>+52(SB)/4, $0x80deb1fe
DATA ·constants<>+56(SB)/4, $0x9bdc06a7
DATA ·constants<>+60(SB)/4, $0xc19bf174
DATA ·constants<>+64(SB)/4, $0xe49b69c1
DATA ·constants<>+68(SB)/4, $0xefbe4786
DATA ·constants<>+72(SB)/4, $0x0fc19dc6
DATA ·constants<>+76(SB)/4, $0x240ca1cc
DATA ·constants<>+80(SB)/4, $0x2de92c6f
DATA ·constants<>+84(SB)/4, $0x4a7484aa
DATA ·constants<>+88(SB)/4, $0x5cb0a9dc
DATA ·constants<>+92(SB)/4, $0x76f988da
DATA ·constants<>+96(SB)/4, $0x983e5152
DATA ·constants<>+100(SB)/4, $0xa831c66d
DATA ·constants<>+104(SB)/4, $0xb00327c8
DATA ·constants<>+108(SB)/4, $0xbf597fc7
DATA ·constants<>+112(SB)/4, $0xc6e00bf3
DATA ·constants<>+116(SB)/4, $0xd5a79147
DATA ·constants<>+120(SB)/4, $0x06ca6351
DATA ·constants<>+124(SB)/4, $0x14292967
DATA ·constants<>+128(SB)/4, $0x27b70a85
DATA ·constants<>+132(SB)/4, $0x2e1b2138
DATA ·constants<>+136(SB)/4, $0x4d2c6dfc
DATA ·constants<>+140(SB)/4, $0x53380d13
DATA ·constants<>+144(SB)/4, $0x650a7354
DATA ·constants<>+148(SB)/4, $0x766a0abb
DATA ·constants<>+152(SB)/4, $0x81c2c92e
DATA ·constants<>+156(SB)/4, $0x92722c85
DATA ·constants<>+160(SB)/4, $0xa2bfe8a1
DATA ·constants<>+164(SB)/4, $0xa81a664b
DATA ·constants<>+168(SB)/4, $0xc24b8b70
DATA ·constants<>+172(SB)/4, $0xc76c51a3
DATA ·constants<>+176(SB)/4, $0xd192e819
DATA ·constants<>+180(SB)/4, $0xd6990624
DATA ·constants<>+184(SB)/4, $0xf40e3585
DATA ·constants<>+188(SB)/4, $0x106aa070
DATA ·constants<>+192(SB)/4, $0x19a4c116
DATA ·constants<>+196(SB)/4, $0x1e376c08
DATA ·constants<>+200(SB)/4, $0x2748774c
DATA ·constants<>+204(SB)/4, $0x34b0bcb5
DATA ·constants<>+208(SB)/4, $0x391c0cb3
DATA ·constants<>+212(SB)/4, $0x4ed8aa4a
DATA ·constants<>+216(SB)/4, $0x5b9cca4f
DATA ·constants<>+220(SB)/4, $0x682e6ff3
DATA ·constants<>+224(SB)/4, $0x748f82ee
DATA ·constants<>+228(SB)/4, $0x78a5636f
DATA ·constants<>+232(SB)/4, $0x84c87814
DATA ·constants<>+236(SB)/4, $0x8cc70208
DATA ·constants<>+240(SB)/4, $0x90befffa
DATA ·constants<>+244(SB)/4, $0xa4506ceb
DATA ·constants<>+248(SB)/4, $0xbef9a3f7
DATA ·constants<>+252(SB)/4, $0xc67178f2
GLOBL ·constants<>(SB), RODATA|NOPTR, $256

package imagecrypt

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func encrypt(t testing.TB, plain []byte, key LayerKey) ([]byte, PublicOptions, PrivateOptions) {
	t.Helper()
	r, finish := EncryptReader(bytes.NewReader(plain), key)
	encrypted, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	pub, priv, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	return encrypted, pub, priv
}

func decrypt(encrypted []byte, priv PrivateOptions, pub PublicOptions) ([]byte, error) {
	r, err := NewDecryptReader(bytes.NewReader(encrypted), priv, pub)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// vector was made with other tools (openssl enc -aes-256-ctr, openssl dgst -mac
// HMAC, and AES-GCM of a Python library). Its nonce makes the counter carry
// through the whole block.
var vector = struct {
	plain, encrypted, hmac, digest string
	packet                         string
	kek                            string
}{
	plain:     "layer bytes, more than three cipher blocks so that the counter wraps",
	encrypted: "0f84cd67c73e2aa48e888af2b9a148368cb990752dc950ae3bf5741e7dec3e9e9af572964825f0b3c280ba19b20e03e8912956da22dcbf86c983f5452db0164a7cddc5ad",
	hmac:      "72630d4a624bd06d92b674cba23c3bcbf6347edc383b6e7cc2b21fb85becf2dd",
	digest:    "sha256:970a2c46828a56283af88fd50457e1f998aca6ecc86cce65d51a6d3632ba9199",
	packet:    `{"kid":"kbs:///default/test-key/1","wrapped_data":"/3LyhluQ5hn61UcAfgunWJG3MH9d2bdt1sFfMUreAeTX/KuLrQEfep3P+KI4voUvTb3ckwxImQEY35buwGNUxdH5wrykBkLv91dPq2VXZcFRPiu52lRUgIA4K4oNFyirMRRE+Ru+3JKEW0Qd7p2RkLumhrjKUpOuStHr0CokPFgYaA1X4i4RFOK8da9l2MzjzIkn4m7zVeIzpTUTrnKH23TfZeVeFhzFyJt94H8rwqOJSu+ThyWIBQTGB3NTv9/zloSJstsZ/o/aAuI9I3GtR+s=","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`,
	kek:       "d99b7705b0ba7a168295b3a3367270b0dd9b371bf514ca8b9ba7f0a33711daea",
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVectorEncrypt(t *testing.T) {
	var key LayerKey
	for i := range key.key {
		key.key[i] = byte(i)
	}
	copy(key.nonce[:], bytes.Repeat([]byte{0xff}, 15))
	key.nonce[15] = 0xfe
	encrypted, pub, priv := encrypt(t, []byte(vector.plain), key)
	if got := hex.EncodeToString(encrypted); got != vector.encrypted {
		t.Errorf("encrypted to %s", got)
	}
	if got := hex.EncodeToString(pub.HMAC); got != vector.hmac {
		t.Errorf("HMAC is %s", got)
	}
	if priv.Digest != vector.digest {
		t.Errorf("digest is %s", priv.Digest)
	}
}

func TestVectorDecrypt(t *testing.T) {
	packet, err := ParsePacket([]byte(vector.packet))
	if err != nil {
		t.Fatal(err)
	}
	if packet.Provider != ProviderKBS || packet.Version != PacketVersion {
		t.Errorf("defaults are missing in %+v", packet)
	}
	priv, err := UnwrapPLBCO(packet, unhex(t, vector.kek))
	if err != nil {
		t.Fatal(err)
	}
	pub, err := ParsePublicOptions([]byte(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + base64.StdEncoding.EncodeToString(unhex(t, vector.hmac)) + `","cipheroptions":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decrypt(unhex(t, vector.encrypted), priv, pub)
	if err != nil || string(got) != vector.plain {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 15, 16, 17, 100_000} {
		plain := bytes.Repeat([]byte{0xa5}, size)
		encrypted, pub, priv := encrypt(t, plain, NewLayerKey())
		if len(encrypted) != size || size > 15 && bytes.Equal(encrypted, plain) {
			t.Errorf("%d bytes were encrypted to %d", size, len(encrypted))
		}
		got, err := decrypt(encrypted, priv, pub)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
		}
		r, err := NewDecryptReader(iotest.DataErrReader(iotest.HalfReader(bytes.NewReader(encrypted))), priv, pub)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("in pieces, %d bytes came back as %d, %v", size, len(got), err)
		}
	}
}

func TestDamage(t *testing.T) {
	encrypted, pub, priv := encrypt(t, []byte("the bytes of a layer"), NewLayerKey())
	changed := bytes.Clone(encrypted)
	changed[3] ^= 1
	for name, bad := range map[string][]byte{
		"changed": changed, "cut": encrypted[:10], "longer": append(bytes.Clone(encrypted), 0), "empty": nil,
	} {
		if _, err := decrypt(bad, priv, pub); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r, err := NewDecryptReader(bytes.NewReader(changed), priv, pub)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 { // the verdict stays
		if _, err := io.ReadAll(r); !errors.Is(err, ErrDamaged) {
			t.Errorf("got %v", err)
		}
	}
	if _, err := io.ReadAll(must(NewDecryptReader(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(encrypted))), priv, pub))); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("got %v", err)
	}

	with := func(f func(*PrivateOptions, *PublicOptions)) error {
		priv, pub := priv, pub
		f(&priv, &pub)
		_, err := decrypt(encrypted, priv, pub)
		return err
	}
	for name, err := range map[string]error{
		"other key":   with(func(p *PrivateOptions, _ *PublicOptions) { p.SymKey = make([]byte, 32) }),
		"short key":   with(func(p *PrivateOptions, _ *PublicOptions) { p.SymKey = p.SymKey[:16] }),
		"no nonce":    with(func(p *PrivateOptions, _ *PublicOptions) { p.CipherOptions = nil }),
		"short nonce": with(func(_ *PrivateOptions, p *PublicOptions) { p.CipherOptions = map[string][]byte{"nonce": {1}} }),
		"no HMAC":     with(func(_ *PrivateOptions, p *PublicOptions) { p.HMAC = nil }),
		"cipher":      with(func(_ *PrivateOptions, p *PublicOptions) { p.Cipher = "AES_128" }),
	} {
		if err == nil {
			t.Errorf("%s: decrypted", name)
		}
	}
}

func must(r io.Reader, err error) io.Reader {
	if err != nil {
		panic(err)
	}
	return r
}

func TestFinishEarly(t *testing.T) {
	r, finish := EncryptReader(strings.NewReader("abc"), NewLayerKey())
	if _, err := r.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := finish(); err == nil {
		t.Error("options of a layer that was not read to its end")
	}
}

func TestPackets(t *testing.T) {
	_, pub, priv := encrypt(t, []byte("x"), NewLayerKey())
	kek := bytes.Repeat([]byte{1}, 32)
	packet, err := WrapPLBCO(kek, "kbs:///default/image-kek/demo", priv)
	if err != nil {
		t.Fatal(err)
	}
	value, err := EncodePackets(packet, packet)
	if err != nil {
		t.Fatal(err)
	}
	packets, err := DecodePackets(value)
	if err != nil || len(packets) != 2 {
		t.Fatalf("got %+v, %v", packets, err)
	}
	got, err := UnwrapPLBCO(packets[1], kek)
	if err != nil || !bytes.Equal(got.SymKey, priv.SymKey) || got.Digest != priv.Digest || !bytes.Equal(got.CipherOptions["nonce"], priv.CipherOptions["nonce"]) {
		t.Errorf("another key came back, %v", err)
	}
	text, err := EncodePublicOptions(pub)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodePublicOptions(text); err != nil || !bytes.Equal(got.HMAC, pub.HMAC) {
		t.Errorf("got %+v, %v", got, err)
	}

	with := func(f func(*Packet)) Packet { p := packet; f(&p); return p }
	for name, p := range map[string]Packet{
		"damaged":  with(func(p *Packet) { p.WrappedData = append(bytes.Clone(p.WrappedData), 0) }),
		"short":    with(func(p *Packet) { p.WrappedData = []byte{1} }),
		"iv":       with(func(p *Packet) { p.IV = make([]byte, 12) }),
		"iv size":  with(func(p *Packet) { p.IV = make([]byte, 16) }),
		"CTR":      with(func(p *Packet) { p.WrapType = "A256CTR" }),
		"provider": with(func(p *Packet) { p.Provider = "aws" }),
	} {
		if _, err := UnwrapPLBCO(p, kek); err == nil {
			t.Errorf("%s: unwrapped", name)
		}
	}
	if _, err := UnwrapPLBCO(packet, make([]byte, 32)); err == nil || !strings.Contains(err.Error(), "default/image-kek/demo") {
		t.Errorf("other key: %v", err)
	}
	for _, size := range []int{0, 16, 33} {
		if _, err := WrapPLBCO(make([]byte, size), "k", priv); err == nil {
			t.Errorf("wrapped with %d bytes", size)
		}
		if _, err := UnwrapPLBCO(packet, make([]byte, size)); err == nil {
			t.Errorf("unwrapped with %d bytes", size)
		}
	}
	b64 := base64.StdEncoding.EncodeToString
	for name, bad := range map[string]string{
		"empty": "", "no base64": "%", "no JSON": b64([]byte("x")), "no kid": b64([]byte(`{"wrapped_data":"AA=="}`)),
		"no data": b64([]byte(`{"kid":"k"}`)), "version": b64([]byte(`{"version":"9","kid":"k","wrapped_data":"AA=="}`)),
		"trailing comma": value + ",", "many": strings.Repeat(value+",", 16) + value, "large": strings.Repeat("A", 200_000),
	} {
		if _, err := DecodePackets(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, bad := range []string{"%", b64([]byte("{}")), b64([]byte(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AA=="}`)), strings.Repeat("A", 200_000)} {
		if _, err := DecodePublicOptions(bad); err == nil {
			t.Errorf("%.20s: accepted", bad)
		}
	}
	if _, err := ParsePrivateOptions([]byte(`{"symkey":"c2VjcmV0`)); err == nil || strings.Contains(err.Error(), "c2Vj") {
		t.Errorf("got %v", err)
	}
}

func TestSecretsStayOutOfLogs(t *testing.T) {
	key := NewLayerKey()
	_, _, priv := encrypt(t, nil, key)
	for _, text := range []string{fmt.Sprint(key, priv), fmt.Sprintf("%+v %#v %s", key, key, priv), fmt.Sprintf("%+v %#v", priv, priv), priv.LogValue().String()} {
		if strings.Contains(text, "[") || strings.Contains(text, "0x") {
			t.Errorf("key is written out: %s", text)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	const l = "application/vnd.oci.image.layer."
	for plain, encrypted := range map[string]string{
		l + "v1.tar": l + "v1.tar+encrypted", l + "v1.tar+gzip": l + "v1.tar+gzip+encrypted", l + "v1.tar+zstd": l + "v1.tar+zstd+encrypted",
	} {
		if got, err := EncryptedMediaType(plain); err != nil || got != encrypted {
			t.Errorf("%s: %s, %v", plain, got, err)
		}
		if got, err := PlainMediaType(encrypted); err != nil || got != plain || !IsEncrypted(encrypted) || IsEncrypted(plain) {
			t.Errorf("%s: %s, %v", encrypted, got, err)
		}
	}
	if got, err := PlainMediaType(l + "nondistributable.v1.tar+gzip+encrypted"); err != nil || got != l+"v1.tar+gzip" {
		t.Errorf("%s, %v", got, err)
	}
	for _, bad := range []string{"", l + "v1.tar", "+encrypted", "application/json+encrypted", l + "v1.tar+encrypted+encrypted", l + "nondistributable.v1.tar+zstd+encrypted"} {
		if got, err := PlainMediaType(bad); err == nil {
			t.Errorf("%s: decrypts to %s", bad, got)
		}
	}
	if _, err := EncryptedMediaType("application/json"); err == nil {
		t.Error("JSON can be encrypted")
	}
}

func FuzzDecodePackets(f *testing.F) {
	f.Add(base64.StdEncoding.EncodeToString([]byte(vector.packet)))
	kek := unhex(f, vector.kek)
	f.Fuzz(func(t *testing.T, value string) {
		packets, err := DecodePackets(value)
		if err != nil {
			return
		}
		for _, p := range packets {
			if _, err := json.Marshal(p); err != nil {
				t.Fatalf("%+v cannot be written: %v", p, err)
			}
			if priv, err := UnwrapPLBCO(p, kek); err == nil && priv.Digest != vector.digest {
				t.Fatalf("%+v was forged", p)
			}
		}
	})
}

func FuzzOptions(f *testing.F) {
	f.Add([]byte(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","cipheroptions":{}}`),
		[]byte(`{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","digest":"","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`), []byte("x"))
	f.Fuzz(func(t *testing.T, pubText, privText, data []byte) {
		pub, err := ParsePublicOptions(pubText)
		if err != nil {
			return
		}
		priv, err := ParsePrivateOptions(privText)
		if err != nil {
			return
		}
		_, _ = decrypt(data, priv, pub) // must not panic
	})
}

func BenchmarkDecrypt(b *testing.B) {
	encrypted, pub, priv := encrypt(b, make([]byte, 16<<20), NewLayerKey())
	b.SetBytes(int64(len(encrypted)))
	for b.Loop() {
		r, err := NewDecryptReader(bytes.NewReader(encrypted), priv, pub)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
	}
}

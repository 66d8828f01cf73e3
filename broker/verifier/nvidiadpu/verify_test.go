package nvidiadpu

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"strings"
	"testing"
	"time"
)

var (
	now        = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	reportData = bytes.Repeat([]byte{0x5A}, 48)
)

// dpu is a made-up device and its maker.
type dpu struct {
	root, deviceID, alias          *x509.Certificate
	rootKey, deviceKey, aliasKey   *ecdsa.PrivateKey
	rootTmpl, deviceTmpl, aliasTpl *x509.Certificate
	signature                      []byte
	version                        int
	architecture                   string
}

func key(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func issue(t *testing.T, tmpl, parent *x509.Certificate, pub *ecdsa.PrivateKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &pub.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func tcbInfo(t *testing.T, explicit bool, digests ...[]byte) []byte {
	t.Helper()
	var list []fwid
	for _, d := range digests {
		list = append(list, fwid{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, d})
	}
	inner, err := asn1.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if !explicit {
		var seq asn1.RawValue
		if _, err := asn1.Unmarshal(inner, &seq); err != nil {
			t.Fatal(err)
		}
		inner = seq.Bytes
	}
	vendor := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: []byte("NVIDIA")}
	fwids := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, IsCompound: true, Bytes: inner}
	out, err := asn1.Marshal([]asn1.RawValue{vendor, fwids})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// newDPU makes a device; change alters it before certificates are made.
func newDPU(t *testing.T, change func(*dpu)) *dpu {
	t.Helper()
	d := &dpu{version: 1, architecture: "bluefield3"}
	d.rootKey, d.deviceKey, d.aliasKey = key(t, elliptic.P384()), key(t, elliptic.P384()), key(t, elliptic.P384())
	ca := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: true,
			BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(1, 0, 0),
			SignatureAlgorithm: x509.ECDSAWithSHA384}
	}
	d.rootTmpl, d.deviceTmpl, d.aliasTpl = ca(1, "root"), ca(0xABC, "bluefield3"), ca(3, "alias")
	d.deviceTmpl.ExtraExtensions = []pkix.Extension{{Id: oidTCBInfo, Critical: true, Value: tcbInfo(t, false, []byte("one"), []byte("two"))}}
	d.aliasTpl.IsCA, d.aliasTpl.KeyUsage, d.aliasTpl.NotBefore = false, x509.KeyUsageDigitalSignature, now.Add(-time.Minute)
	if change != nil {
		change(d)
	}
	d.root = issue(t, d.rootTmpl, d.rootTmpl, d.rootKey, d.rootKey)
	d.deviceID = issue(t, d.deviceTmpl, d.rootTmpl, d.deviceKey, d.rootKey)
	d.alias = issue(t, d.aliasTpl, d.deviceTmpl, d.aliasKey, d.deviceKey)
	d.sign(t, append(bytes.Clone(reportData), make([]byte, 16)...), true)
	return d
}

func (d *dpu) sign(t *testing.T, message []byte, raw bool) {
	t.Helper()
	digest := sha512.Sum384(message)
	der, err := ecdsa.SignASN1(rand.Reader, d.aliasKey, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if d.signature = der; !raw {
		return
	}
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		t.Fatal(err)
	}
	d.signature = make([]byte, rawSignature)
	rs.R.FillBytes(d.signature[:48])
	rs.S.FillBytes(d.signature[48:])
}

func (d *dpu) evidence(t *testing.T) json.RawMessage {
	t.Helper()
	b64 := base64.StdEncoding.EncodeToString
	out, err := json.Marshal(map[string]any{"version": d.version, "devices": []any{map[string]any{
		"architecture": d.architecture, "alias_cert": b64(d.alias.Raw), "device_id_cert": b64(d.deviceID.Raw),
		"report_data_signature": b64(d.signature)}}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (d *dpu) verify(t *testing.T) (map[string]any, error) {
	t.Helper()
	return Verify(context.Background(), d.evidence(t), Options{ExpectedReportData: reportData, Now: now, Root: d.root})
}

func TestVerify(t *testing.T) {
	d := newDPU(t, nil)
	claims, err := d.verify(t)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384([]byte("onetwo"))
	for name, want := range map[string]any{
		"device_serial": "abc", "device_class": "bluefield3", "firmware_layers_count": 2,
		"accumulated_fwid": hex.EncodeToString(digest[:]), "alias_timestamp": now.Add(-time.Minute).Unix(),
		"session_nonce": hex.EncodeToString(reportData),
	} {
		if claims[name] != want {
			t.Errorf("%s is %v, want %v", name, claims[name], want)
		}
	}
	for _, raw := range []bool{true, false} {
		d.sign(t, reportData, raw)
		if _, err := d.verify(t); err != nil {
			t.Errorf("unpadded, raw %v: %v", raw, err)
		}
	}
	explicit := newDPU(t, func(d *dpu) { d.deviceTmpl.ExtraExtensions[0].Value = tcbInfo(t, true, []byte("one"), []byte("two")) })
	if claims, err := explicit.verify(t); err != nil || claims["firmware_layers_count"] != 2 {
		t.Errorf("fwids with a sequence inside: %v, %v", claims["firmware_layers_count"], err)
	}
	none := newDPU(t, func(d *dpu) { d.deviceTmpl.ExtraExtensions = nil })
	if claims, err := none.verify(t); err != nil || claims["firmware_layers_count"] != 0 {
		t.Errorf("no TcbInfo: %v, %v", claims["firmware_layers_count"], err)
	}
	offline, err := Verify(context.Background(), d.evidence(t), Options{Offline: true, Now: now, Root: d.root})
	if err != nil || offline["session_nonce"] != nil {
		t.Errorf("off-line: %v, %v", offline, err)
	}
}

func TestRefused(t *testing.T) {
	other := key(t, elliptic.P384())
	for _, c := range []struct {
		name, want string
		before     func(*dpu) // before certificates are made
		after      func(*dpu)
	}{
		{"version", "version is 2", nil, func(d *dpu) { d.version = 2 }},
		{"architecture", "architecture is", nil, func(d *dpu) { d.architecture = "bluefield9" }},
		{"other root", "not signed by", nil, func(d *dpu) { d.root = issue(t, d.rootTmpl, d.rootTmpl, other, other) }},
		{"other issuer", "names the issuer", nil, func(d *dpu) {
			d.rootTmpl.Subject.CommonName = "x"
			d.root = issue(t, d.rootTmpl, d.rootTmpl, d.rootKey, d.rootKey)
		}},
		{"alias of another device", "not signed by", nil, func(d *dpu) { d.alias = issue(t, d.aliasTpl, d.deviceTmpl, d.aliasKey, other) }},
		{"device is no authority", "not signed by", func(d *dpu) { d.deviceTmpl.IsCA = false }, nil},
		{"alias is an authority", "that of an authority", func(d *dpu) { d.aliasTpl.IsCA = true }, nil},
		{"device expired", "device_id_cert is valid", func(d *dpu) { d.deviceTmpl.NotAfter = now.Add(-time.Hour) }, nil},
		{"alias expired", "alias_cert is valid", func(d *dpu) { d.aliasTpl.NotAfter = now.Add(-time.Second) }, nil},
		{"alias old", "at most 1h0m0s", func(d *dpu) { d.aliasTpl.NotBefore = now.Add(-61 * time.Minute) }, nil},
		{"alias to come", "alias_cert is valid", func(d *dpu) { d.aliasTpl.NotBefore = now.Add(time.Minute) }, nil},
		{"root expired", "root is valid", func(d *dpu) { d.rootTmpl.NotAfter = now.Add(-time.Hour) }, nil},
		{"curve", "not on P-384", func(d *dpu) { d.aliasKey = key(t, elliptic.P256()) },
			func(d *dpu) { d.signature = make([]byte, 96) }},
		{"critical extension", "critical extension", func(d *dpu) {
			d.aliasTpl.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, nil},
		{"TcbInfo", "reading TcbInfo", func(d *dpu) { d.deviceTmpl.ExtraExtensions[0].Value = []byte{0x30, 3, 0xA6, 1, 9} }, nil},
		{"SHA-256", "want ECDSA-SHA384", func(d *dpu) { d.aliasTpl.SignatureAlgorithm = x509.ECDSAWithSHA256 }, nil},
		{"other report data", "report_data_signature is not", nil, func(d *dpu) { d.sign(t, []byte("other"), true) }},
		{"no signature", "report_data_signature is missing", nil, func(d *dpu) { d.signature = nil }},
		{"zero signature", "report_data_signature is not", nil, func(d *dpu) { d.signature = make([]byte, 96) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDPU(t, func(d *dpu) {
				if c.before != nil {
					c.before(d)
				}
			})
			if c.after != nil {
				c.after(d)
			}
			if _, err := d.verify(t); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	d := newDPU(t, nil)
	good := Options{ExpectedReportData: reportData, Now: now, Root: d.root}
	for name, change := range map[string]func(*Options){
		"root": func(o *Options) { o.Root = nil }, "time": func(o *Options) { o.Now = time.Time{} },
		"report data": func(o *Options) { o.ExpectedReportData = nil }, "init data": func(o *Options) { o.InitDataDigest = []byte{} },
		"long report data": func(o *Options) { o.ExpectedReportData = make([]byte, 65) }, "age": func(o *Options) { o.MaxAge = -1 },
	} {
		o := good
		change(&o)
		if _, err := Verify(context.Background(), d.evidence(t), o); err == nil {
			t.Errorf("without %s it is accepted", name)
		}
	}
}

// TestTampered flips a bit of every byte of both certificates and of the signature.
func TestTampered(t *testing.T) {
	d := newDPU(t, nil)
	for _, part := range []struct {
		name string
		data []byte
		set  func(json map[string]any, b64 string)
	}{
		{"alias", d.alias.Raw, func(m map[string]any, v string) { m["alias_cert"] = v }},
		{"device", d.deviceID.Raw, func(m map[string]any, v string) { m["device_id_cert"] = v }},
		{"signature", d.signature, func(m map[string]any, v string) { m["report_data_signature"] = v }},
	} {
		var e map[string]any
		if err := json.Unmarshal(d.evidence(t), &e); err != nil {
			t.Fatal(err)
		}
		device := e["devices"].([]any)[0].(map[string]any)
		for i := range 2 * len(part.data) {
			b := bytes.Clone(part.data[:min(i, len(part.data))])
			if i >= len(part.data) {
				b = bytes.Clone(part.data)
				b[i-len(part.data)] ^= 1
			}
			part.set(device, base64.StdEncoding.EncodeToString(b))
			text, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Verify(context.Background(), text, Options{ExpectedReportData: reportData, Now: now, Root: d.root}); err == nil {
				t.Errorf("%s, change %d is accepted", part.name, i)
			}
		}
	}
}

func FuzzFirmware(f *testing.F) {
	f.Add([]byte{0x30, 8, 0xA6, 6, 0x30, 4, 6, 0, 4, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		list, err := firmware(&x509.Certificate{Extensions: []pkix.Extension{{Id: oidTCBInfo, Value: der}}})
		if err == nil && len(list) > maxLayers {
			t.Fatalf("%d layers", len(list))
		}
	})
}

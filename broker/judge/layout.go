package judge

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"

	"github.com/cloister/cloister/tee/csv"
	"github.com/cloister/cloister/tee/quote"
)

// What is here is signed by nobody. It is held against what is known of it all the same, so that a damaged file is not called
// genuine because the damage was beside what counts.

// hclLayout checks header and filling of an HCL report (evidence-layouts.md section 5).
func (j *judging) hclLayout(b []byte) {
	const header, hardware = 32, 1184
	if len(b) < header+hardware+20 {
		return // the parser has said so
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[at:]) }
	if v := u32(4); v != 1 && v != 2 {
		j.refuse("version of the HCL report is %d, expected 1 or 2", v)
	}
	for _, f := range []struct {
		name      string
		at        int
		want, got uint32
	}{{name: "request type", at: 12, want: 2}, {name: "status", at: 16, want: 0}, {name: "data version", at: header + hardware + 4, want: 1}} {
		if f.got = u32(f.at); f.got != f.want {
			j.refuse("%s of the HCL report is %d, expected %d", f.name, f.got, f.want)
		}
	}
	if !zero(b[20:header]) {
		j.refuse("reserved bytes of the HCL report's header are %x, expected zero", b[20:header])
	}
	if end := u32(8); uint64(end) <= uint64(len(b)) && !zero(b[end:]) {
		j.refuse("the HCL report is followed by %d bytes that are not all zero, expected filling", len(b)-int(end))
	}
}

// tdReport holds the TDREPORT of an HCL report against the quote that was made from it: what identifies TD and module.
func (j *judging) tdReport(hcl []byte, td *quote.TDReport) {
	const start, size = 32, 1184
	if len(hcl) < start+size {
		return
	}
	report := hcl[start:][:size]
	// TEE_TCB_INFO from its SVNs on, and TDINFO up to the last register, are in a quote's body in the same order.
	for _, part := range []struct {
		name      string
		got, want []byte
	}{{"TEE_TCB_INFO", report[264:384], td.Raw[:120]}, {"TDINFO", report[512:912], td.Raw[120:520]}} {
		if !bytes.Equal(part.got, part.want) {
			j.refuse("%s of the TDREPORT is %x, expected %x as quoted", part.name, part.got, part.want)
		}
	}
	if !zero(report[1024:]) {
		j.refuse("the TDREPORT is followed by bytes that are not all zero, expected filling")
	}
}

// linked checks that a chain of certificates, leaf first, is one, also above the part that is needed.
func (j *judging) linked(certs []*x509.Certificate) {
	for i, c := range certs {
		issuer := c
		if i+1 < len(certs) {
			issuer = certs[i+1]
		} else if !selfSigned(c) {
			if i > 1 { // leaf, issuer, root
				j.refuse("last certificate of the chain (%s) is issued by %q, expected itself", c.Subject.CommonName, c.Issuer)
			}
			return
		}
		if !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
			j.refuse("certificate %d of the chain is issued by %q, expected %q which follows it", i+1, c.Issuer, issuer.Subject)
		}
		if err := issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature); err != nil {
			j.refuse("certificate %d of the chain (%s) is not signed by %q: %v", i+1, c.Subject.CommonName, issuer.Subject.CommonName, err)
		}
	}
}

// hygonLayout checks the filling of a report and of the certificates of its chip (evidence-layouts.md section 6).
func (j *judging) hygonLayout(report []byte, version int, chain []byte) {
	size := csv.ReportV1Size
	if version == 2 {
		size = csv.ReportV2Size
	}
	if len(report) > size && !zero(report[size:]) {
		j.refuse("the report is followed by %d bytes that are not all zero, expected filling", len(report)-size)
	}
	if len(chain) < csv.RootCertSize+csv.CertSize {
		return
	}
	if !zero(chain[720:csv.RootCertSize]) {
		j.refuse("reserved bytes of the HSK certificate are not all zero")
	}
	const first, second, scalars, unusedKey = 1044, 1564, 8 + 144, 0x1000
	cek := chain[csv.RootCertSize:]
	if !zero(cek[first+scalars:second]) || !zero(cek[second+scalars:csv.CertSize]) {
		j.refuse("reserved bytes of the CEK certificate's signatures are not all zero")
	}
	if binary.LittleEndian.Uint32(cek[second:]) == unusedKey && !zero(cek[second+4:second+scalars]) {
		j.refuse("the second signature of the CEK certificate is of no key and not all zero")
	}
}

func zero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

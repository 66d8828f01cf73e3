package fakedcap

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
)

const tcbDate = "2025-05-14T00:00:00Z"

// Level is a TCB level of an enclave or module.
func Level(isvsvn int, status string, advisories ...string) map[string]any {
	return map[string]any{"tcb": map[string]any{"isvsvn": isvsvn}, "tcbDate": tcbDate, "tcbStatus": status, "advisoryIDs": advisories}
}

// PlatformLevel is a TCB level of a platform.
func PlatformLevel(sgx, tdx [16]uint8, pcesvn int, status string, advisories ...string) map[string]any {
	list := func(a [16]uint8) (out []any) {
		for _, n := range a {
			out = append(out, map[string]any{"svn": n})
		}
		return out
	}
	return map[string]any{"tcb": map[string]any{"sgxtcbcomponents": list(sgx), "tdxtcbcomponents": list(tdx), "pcesvn": pcesvn},
		"tcbDate": tcbDate, "tcbStatus": status, "advisoryIDs": advisories}
}

// UseTDX sets collateral under which the platform's TDs are up to date.
func (w *World) UseTDX() {
	zeros := func(n int) string { return hex.EncodeToString(make([]byte, n)) }
	module := func(id string, levels ...any) map[string]any {
		return map[string]any{"id": id, "mrsigner": zeros(48), "attributes": zeros(8), "attributesMask": "FFFFFFFFFFFFFFFF", "tcbLevels": levels}
	}
	w.TCBInfo = w.stamp("TDX", 3, map[string]any{
		"fmspc": FMSPC, "pceId": "0000", "tcbType": 0, "tdxModule": module(""),
		"tdxModuleIdentities": []any{
			module("TDX_03", Level(3, "UpToDate")),
			module("TDX_01", Level(5, "UpToDate"), Level(3, "OutOfDate", "INTEL-SA-3"), Level(1, "Revoked")),
		},
		"tcbLevels": []any{
			PlatformLevel(Components, [16]uint8{5, 0, 2}, PCESVN, "UpToDate"),
			PlatformLevel([16]uint8{1}, [16]uint8{1}, 5, "OutOfDate", "INTEL-SA-2", "INTEL-SA-1"),
		},
	})
	w.QEIdentity = w.identity("TD_QE")
}

// UseSGX sets collateral under which the platform's enclaves are up to date.
func (w *World) UseSGX() {
	w.UseTDX()
	w.TCBInfo["id"] = "SGX"
	delete(w.TCBInfo, "tdxModule")
	delete(w.TCBInfo, "tdxModuleIdentities")
	w.QEIdentity = w.identity("QE")
}

func (w *World) identity(id string) map[string]any {
	return w.stamp(id, 2, map[string]any{
		"miscselect": "00000000", "miscselectMask": "FFFFFFFF",
		"attributes": "11000000000000000000000000000000", "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
		"mrsigner": hex.EncodeToString(qeSigner), "isvprodid": 2,
		"tcbLevels": []any{Level(QESVN, "UpToDate"), Level(6, "OutOfDate", "INTEL-SA-9"), Level(4, "Revoked")},
	})
}

func (w *World) stamp(id string, version int, doc map[string]any) map[string]any {
	doc["id"], doc["version"] = id, version
	doc["issueDate"], doc["nextUpdate"] = w.Now.Add(-time.Hour).Format(time.RFC3339), w.Now.Add(30*24*time.Hour).Format(time.RFC3339)
	doc["tcbEvaluationDataNumber"] = 20
	return doc
}

// Document signs an inner object as Intel does: over its bytes.
func (w *World) Document(name string, inner any, by *Cert) []byte {
	w.t.Helper()
	body, err := json.Marshal(inner)
	w.must(err)
	return fmt.Appendf(nil, `{"%s":%s,"signature":"%x"}`, name, body, w.sign(by, body))
}

// Collateral is what this Intel publishes now.
func (w *World) Collateral() *dcap.Collateral {
	w.t.Helper()
	signers := append(w.Signer.PEM(), w.Root.PEM()...)
	return &dcap.Collateral{
		TCBInfo: w.Document("tcbInfo", w.TCBInfo, w.Signer), TCBInfoIssuerChain: signers,
		QEIdentity: w.Document("enclaveIdentity", w.QEIdentity, w.Signer), QEIdentityIssuerChain: signers,
		PCKCRL: w.CRL(w.CA), PCKCRLIssuerChain: append(w.CA.PEM(), w.Root.PEM()...), RootCRL: w.CRL(w.Root),
	}
}

// Source is a dcap.Source with this world's collateral.
func (w *World) Source() *Source { return &Source{Answer: w.Collateral()} }

// CRL is the revocation list of an issuer.
func (w *World) CRL(issuer *Cert) []byte {
	w.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: w.Now.Add(-24 * time.Hour), NextUpdate: w.CRLUntil}
	for _, c := range w.Revoked {
		if bytes.Equal(c.RawIssuer, issuer.RawSubject) {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: w.Now.Add(-48 * time.Hour)})
		}
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer.Certificate, issuer.Key)
	w.must(err)
	return der
}

// qeSigner is MRSIGNER of the quoting enclave.
var qeSigner = func() []byte { s := sha256.Sum256([]byte("quoting enclave")); return s[:] }()

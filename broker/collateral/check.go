package collateral

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/cloister/cloister/tee/snp"
)

// MaxDocument bounds one document in bytes. Intel's largest CRLs have some hundred kilobytes.
const MaxDocument = 8 << 20

// Check refuses what is not the document a key names and returns the window that the document states for itself. It checks no
// signature: that is the business of verifiers.
func Check(key Key, data, chain []byte) (issued, until time.Time, err error) {
	switch {
	case len(data) == 0:
		return issued, until, errors.New("got an empty document")
	case len(data) > MaxDocument || len(chain) > MaxDocument:
		return issued, until, fmt.Errorf("got a document of %d bytes, expected at most %d", max(len(data), len(chain)), MaxDocument)
	}
	switch key.Kind {
	case VCEK:
		issued, until, err = checkVCEK(key.Name, data)
	case AMDChain:
		issued, until, err = checkChain(data)
	case AMDCRL, PCKCRL, RootCRL:
		issued, until, err = checkCRL(data)
	case TCBInfo:
		issued, until, err = checkTCBInfo(key.Name, data)
	case QEIdentity:
		issued, until, err = checkQEIdentity(key.Name, data)
	case RIM:
		err = checkRIM(data)
	case OCSP:
		issued, until, err = checkOCSP(data)
	default:
		err = key.Validate()
	}
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	if key.Kind == TCBInfo || key.Kind == QEIdentity || key.Kind == PCKCRL {
		if _, _, err := checkChain(chain); err != nil {
			return time.Time{}, time.Time{}, fmt.Errorf("issuer chain beside it: %w", err)
		}
	}
	return issued, until, nil
}

// start shows the beginning of something unexpected.
func start(data []byte) string { return fmt.Sprintf("%.40q", data[:min(len(data), 40)]) }

func checkChain(data []byte) (issued, until time.Time, err error) {
	n := 0
	for rest := data; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return issued, until, fmt.Errorf("certificate %d of the chain: %w", n+1, err)
		}
		if n == 0 || cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
		if n == 0 || cert.NotBefore.After(issued) {
			issued = cert.NotBefore
		}
		if n == 8 {
			return issued, until, errors.New("got a chain of more than 8 certificates, expected 2")
		}
	}
	if n == 0 {
		return issued, until, fmt.Errorf("got %s, expected certificates in PEM", start(data))
	}
	return issued, until, nil
}

func checkCRL(data []byte) (issued, until time.Time, err error) {
	crl, err := x509.ParseRevocationList(data)
	if err != nil {
		return issued, until, fmt.Errorf("got %s, expected a revocation list: %w", start(data), err)
	}
	if crl.NextUpdate.IsZero() {
		return issued, until, errors.New("got a revocation list without nextUpdate: when it ends cannot be known")
	}
	return crl.ThisUpdate, crl.NextUpdate, nil
}

func checkTCBInfo(name string, data []byte) (issued, until time.Time, err error) {
	var doc struct {
		TCBInfo *struct {
			ID    string `json:"id"`
			FMSPC string `json:"fmspc"`
			Issue string `json:"issueDate"`
			Next  string `json:"nextUpdate"`
		} `json:"tcbInfo"`
	}
	if err := json.Unmarshal(data, &doc); err != nil || doc.TCBInfo == nil {
		return issued, until, fmt.Errorf("got %s, expected JSON with the member tcbInfo", start(data))
	}
	tee, rest, _ := strings.Cut(name, "/")
	fmspc, _, _ := strings.Cut(rest, "/")
	if got := doc.TCBInfo.FMSPC; !strings.EqualFold(got, fmspc) {
		return issued, until, fmt.Errorf("fmspc is %.16q, expected %s", got, fmspc)
	}
	// Version 2 of the document, SGX only, has no id.
	if got := doc.TCBInfo.ID; !strings.EqualFold(got, tee) && (got != "" || tee != "sgx") {
		return issued, until, fmt.Errorf("id is %.16q, expected %s", got, strings.ToUpper(tee))
	}
	return window(doc.TCBInfo.Issue, doc.TCBInfo.Next)
}

func checkQEIdentity(name string, data []byte) (issued, until time.Time, err error) {
	var doc struct {
		Identity *struct {
			ID    string `json:"id"`
			Issue string `json:"issueDate"`
			Next  string `json:"nextUpdate"`
		} `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(data, &doc); err != nil || doc.Identity == nil {
		return issued, until, fmt.Errorf("got %s, expected JSON with the member enclaveIdentity", start(data))
	}
	want := "QE"
	if strings.HasPrefix(name, "tdx/") {
		want = "TD_QE"
	}
	if doc.Identity.ID != want {
		return issued, until, fmt.Errorf("id is %.16q, expected %s", doc.Identity.ID, want)
	}
	return window(doc.Identity.Issue, doc.Identity.Next)
}

func window(issue, next string) (issued, until time.Time, err error) {
	if issued, err = time.Parse(time.RFC3339, issue); err != nil {
		return issued, until, fmt.Errorf("issueDate is %.32q, expected a time", issue)
	}
	if until, err = time.Parse(time.RFC3339, next); err != nil {
		return issued, until, fmt.Errorf("nextUpdate is %.32q, expected a time", next)
	}
	return issued, until, nil
}

func checkRIM(data []byte) error {
	if !bytes.Contains(data[:min(len(data), 4096)], []byte("SoftwareIdentity")) {
		return fmt.Errorf("got %s, expected a SWID tag", start(data))
	}
	return nil
}

func checkOCSP(data []byte) (issued, until time.Time, err error) {
	r, err := ocsp.ParseResponse(data, nil)
	if err != nil {
		return issued, until, fmt.Errorf("got %s, expected an OCSP response: %w", start(data), err)
	}
	if r.NextUpdate.IsZero() {
		return issued, until, errors.New("got an OCSP response without nextUpdate: it cannot be kept")
	}
	return r.ThisUpdate, r.NextUpdate, nil
}

// checkVCEK compares a certificate with the chip and the TCB version in a name: an offline store may hold one for another version,
// and then the next source is worth asking.
func checkVCEK(name string, data []byte) (issued, until time.Time, err error) {
	cert, err := x509.ParseCertificate(data)
	if err != nil {
		return issued, until, fmt.Errorf("got %s, expected a certificate: %w", start(data), err)
	}
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return issued, until, fmt.Errorf("name is %q, expected line/chip/tcb", name)
	}
	leaf, err := snp.ParseLeaf(cert.Extensions)
	if err != nil {
		return issued, until, err
	}
	if chip := hex.EncodeToString(leaf.HWID); chip != parts[1] {
		return issued, until, fmt.Errorf("it is for chip %.24s…, expected %.24s…", chip, parts[1])
	}
	if got := TCBName(leaf.TCB, leaf.HasFMC); got != parts[2] {
		return issued, until, fmt.Errorf("it is for TCB %s, expected %s", got, parts[2])
	}
	return cert.NotBefore, cert.NotAfter, nil
}

// TCBName is how names of VCEKs and files of offline stores write a TCB version.
func TCBName(tcb snp.TCB, fmc bool) string {
	name := fmt.Sprintf("bl%02d_tee%02d_snp%02d_ucode%02d", tcb.BootLoader, tcb.TEE, tcb.SNP, tcb.Microcode)
	if fmc {
		name += fmt.Sprintf("_fmc%02d", tcb.FMC)
	}
	return name
}

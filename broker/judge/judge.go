// Package judge says whether saved evidence is genuine: raw as the hardware made it, or in the JSON that guests send, of every kind
// the broker knows, with nothing but what is given to it. It asks no server.
//
// Judge is a function of its Input. Signatures, chains, dates and collateral are the business of broker/verifier; what is judged
// here is what its claims mean for somebody without a policy of his own: a guest that can be debugged, migrated or read by its
// host is refused although its signatures are good, and what was not checked for want of something is said. Every reason names what
// was found and what was expected. docs/reference/evidence-verify.md has the rules.
//
// Cases judges a folder of evidence with the verdict expected of each, and says where it differs.
package judge

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/verifier"
	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/broker/verifier/nvidia"
	"github.com/cloister/cloister/broker/verifier/snp"
)

// Outcome is the verdict.
type Outcome string

// Outcomes.
const (
	Genuine  Outcome = "genuine"
	Refused  Outcome = "refused"
	Unjudged Outcome = "cannot be judged"
)

// ExitCode is the outcome as a process tells it.
func (o Outcome) ExitCode() int {
	switch o {
	case Genuine:
		return 0
	case Refused:
		return 1
	}
	return 2
}

// Verdict is what is known about evidence.
type Verdict struct {
	Outcome    Outcome        `json:"verdict"`
	Reasons    []string       `json:"reasons"` // most grave first; after them what was not checked, and why
	TCBStatus  string         `json:"tcb_status"`
	Advisories []string       `json:"advisories"`
	Claims     map[string]any `json:"claims"`
	// Word is the verdict in the finer words of a folder of cases.
	Word Word `json:"-"`
}

// DefaultMaxVMPL is the least privileged level of an SNP guest that may have asked for a report: 0 is the firmware or paravisor,
// 1 the kernel above one (and what common tools ask for); 2 and 3 are programs inside the guest.
const DefaultMaxVMPL = 1

// Input is evidence and what it is held against. Files are bytes as they were read; nil means that there is none.
type Input struct {
	// TEE is what made the evidence, one of TEEs.
	TEE string
	// Evidence is the main file: a report, quote, token, event log or JSON evidence.
	Evidence []byte

	// Certificates and keys whose place is told by what is in them. A self-signed one is a root that the caller trusts.
	Certificates [][]byte
	// Leaf, Issuers and Root are certificates whose place is known. A Root is trusted in place of the vendor's.
	Leaf    []byte
	Issuers [][]byte
	Root    []byte
	// CRLs are revocation lists of certificates; IssuerCRLs are those of the authorities above (Secure Execution).
	CRLs, IssuerCRLs [][]byte
	// Chain is the certificates beside NVIDIA reports, leaf first, and hsk_cek of Hygon.
	Chain []byte
	// Key is what signs without a certificate: a TPM's attestation key, a CPAK, the measurement key of Secure Execution.
	Key []byte

	// Message and Signature are a TPM quote, beside the HCL report that is the Evidence; for a TPM the message is the Evidence.
	Message, Signature []byte
	TDQuote            []byte // beside an HCL report, or beside an event log
	PCRs               []byte // register values: tpm2-tools' binary form, or JSON {"0":"hex",…}
	Log                []byte // event log of the evidence

	// Nonce, ReportData and InitData must be in the evidence when not nil; an empty one says that the field is empty.
	Nonce, ReportData, InitData []byte
	// Nonces are those of each device, for evidence of several.
	Nonces [][]byte
	// Events, Replay, Selection, PCRDigest and SigAlg are what an event log or a quote has to come out as.
	Events    *int
	Replay    map[string]map[string]string
	Selection []Selection
	PCRDigest []byte
	SigAlg    []byte
	// Arch is the architecture of an NVIDIA report; Magic and Flags are those a Hygon report was asked for with.
	Arch  string
	Magic *string
	Flags *uint32

	// Time is when everything is judged at. The zero time means when the youngest certificate in use was issued.
	Time time.Time
	// MaxVMPL: see DefaultMaxVMPL.
	MaxVMPL uint32

	// Collateral is what Intel publishes, AMD and NVIDIA what these do; nil is none.
	Collateral dcap.Source
	AMD        snp.Certificates
	NVIDIA     nvidia.Collateral
	// Others judge what this package has no rules of its own for, by name.
	Others *verifier.Set
}

// Selection is the registers of one bank that a quote is over.
type Selection struct {
	Bank string
	PCRs []int
}

const (
	maxEvidence = 16 << 20
	maxPart     = 4 << 20
)

// judges are the kinds of evidence, and the names of their parts in a folder of cases.
func judges() map[string]func(*judging) {
	return map[string]func(*judging){
		"snp": (*judging).snp,
		"tdx": (*judging).tdx, "sgx": (*judging).sgx, "dcap": (*judging).dcap,
		"eventlog":    (*judging).eventLog,
		"az-snp-vtpm": (*judging).azureSNP, "az-snp-raw": (*judging).azureSNP,
		"az-tdx-vtpm": (*judging).azureTDX, "az-tdx-raw": (*judging).azureTDX,
		"tpm": (*judging).tpm, "tpm-coco": (*judging).tpm, "tpm-google": (*judging).tpm,
		"cca": (*judging).cca, "csv": (*judging).csv, "csv-coco": (*judging).csv,
		"nvidia": (*judging).nvidia, "nvidia-json": (*judging).nvidia,
		"se": (*judging).se, "se-hkd": (*judging).hostKey,
		"hygondcu": (*judging).other, "nvidia-dpu": (*judging).other,
	}
}

// TEEs lists the names that Input.TEE may have.
func TEEs() []string { return slices.Sorted(maps.Keys(judges())) }

// judging is one judgement on its way.
type judging struct {
	findings
	*Input
	ctx context.Context
}

// Judge judges evidence. It always has a verdict: what is wrong with the input is a reason to refuse it.
func Judge(ctx context.Context, in Input) Verdict {
	j := &judging{Input: &in, ctx: ctx}
	in.TEE = Name(in.TEE)
	run, known := judges()[in.TEE]
	switch {
	case !known:
		j.open(ParseOnly, "tee is %.32q, expected one of %s", in.TEE, strings.Join(TEEs(), ", "))
	case len(in.Evidence) > maxEvidence:
		j.refuse("evidence has %d bytes, expected at most %d", len(in.Evidence), maxEvidence)
	case len(in.Evidence) == 0:
		j.refuse("evidence has 0 bytes, expected at least 1")
	case in.oversized() > 0:
		j.refuse("a file beside the evidence has %d bytes, expected at most %d", in.oversized(), maxPart)
	default:
		var others bool
		if in.Evidence, others = message(in.Evidence); others {
			j.note("additional_evidence was not looked at, expected to be judged as evidence of its own")
		}
		run(j)
		j.listsUnused()
	}
	if err := ctx.Err(); err != nil {
		j.open(ParseOnly, "judging was interrupted: %v", err)
	}
	return j.verdict()
}

// oversized is the size of a part that is too large, or 0.
func (in *Input) oversized() int {
	parts := slices.Concat([][]byte{in.Leaf, in.Root, in.Chain, in.Key, in.Message, in.Signature, in.TDQuote, in.PCRs},
		in.Certificates, in.Issuers)
	for _, p := range parts {
		if len(p) > maxPart {
			return len(p)
		}
	}
	for _, p := range slices.Concat([][]byte{in.Log}, in.CRLs, in.IssuerCRLs) {
		if len(p) > maxEvidence {
			return len(p)
		}
	}
	return 0
}

// at is the time to judge at: the one given, or when the youngest of these was issued.
func (j *judging) at(issued ...time.Time) time.Time {
	if !j.Time.IsZero() {
		return j.Time
	}
	var youngest time.Time
	for _, t := range issued {
		if t.After(youngest) {
			youngest = t
		}
	}
	if youngest.IsZero() {
		youngest = time.Unix(0, 0)
	}
	j.note("no time was given: judged at %s, when the youngest certificate was issued", youngest.UTC().Format(time.RFC3339))
	return youngest
}

// trusted says which root the verdict rests on.
func (j *judging) trusted(name string, digest [32]byte, given bool) {
	if !given {
		j.claim("trust_root", fmt.Sprintf("built in: %s, SHA-256 %x", name, digest))
		return
	}
	j.claim("trust_root", fmt.Sprintf("given by the caller: %s, SHA-256 %x", name, digest))
	j.note("trust_root is %q, which the caller gave and which is trusted for this answer alone; expected the vendor's for any other use", name)
}

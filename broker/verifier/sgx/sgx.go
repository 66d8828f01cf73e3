// Package sgx verifies Intel SGX evidence: {"quote":"<base64>"} (attestation-service.md section 4.6).
//
// Verify is a function of its arguments. It checks, in this order: that the quote is that of an enclave; everything of
// package dcap; that REPORTDATA is the expected report data; that CONFIGID is the init-data digest. Debug enclaves, an
// outdated TCB and expired collateral are claims for a policy to judge, not errors.
//
// Beyond upstream: enclave quotes of version 4 and 5 are accepted too, with the claims of version 3. Stricter than upstream:
// report data must be given.
package sgx

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloister/cloister/broker/verifier/dcap"
	"github.com/cloister/cloister/tee/quote"
)

// Options is what evidence is held against.
type Options = dcap.EvidenceOptions

// Verify checks evidence and returns its claims.
func Verify(ctx context.Context, raw json.RawMessage, o Options) (map[string]any, error) {
	if len(o.ExpectedReportData) == 0 && !o.Offline {
		return nil, errors.New("no report data is given that the quote must be bound to")
	}
	var e struct {
		Quote string `json:"quote"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, fmt.Errorf("reading evidence: %w", err)
	}
	b, err := dcap.Decode("quote", e.Quote, quote.MaxSize)
	if err != nil {
		return nil, err
	}
	q, out, err := verifyQuote(ctx, b, o.Quote())
	if err != nil {
		return nil, err
	}
	if err := o.BoundReportData(q.Enclave.ReportData); err != nil {
		return nil, err
	}
	if o.InitDataDigest != nil {
		const meaning = "the init data sent is not what the enclave was made with"
		if err := dcap.Bound("config_id", q.Enclave.ConfigID, o.InitDataDigest, meaning); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// VerifyQuote checks the quote of an enclave and returns its claims. Nothing is bound to anything: the caller has to compare the
// report data.
func VerifyQuote(ctx context.Context, raw []byte, o dcap.Options) (map[string]any, error) {
	_, out, err := verifyQuote(ctx, raw, o)
	return out, err
}

func verifyQuote(ctx context.Context, raw []byte, o dcap.Options) (*quote.Quote, map[string]any, error) {
	q, err := quote.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	if q.Enclave == nil {
		return nil, nil, fmt.Errorf("quote is of TEE type %v, expected SGX", q.TEE)
	}
	r, err := dcap.Verify(ctx, q, o)
	if err != nil {
		return nil, nil, err
	}
	return q, claims(q, r), nil
}

func claims(q *quote.Quote, r *dcap.Result) map[string]any {
	h, e := q.Header, q.Enclave
	out := r.Claims
	out["header"] = hexed(map[string][]byte{
		"version": h.Version, "att_key_type": h.KeyType, "att_key_data_0": h.TEEType, "qe_svn": h.QESVN, "pce_svn": h.PCESVN,
		"vendor_id": h.VendorID, "user_data": h.UserData,
	})
	out["body"] = hexed(map[string][]byte{
		"cpu_svn": e.CPUSVN, "misc_select": e.MiscSelect, "reserved1": e.Reserved1, "isv_ext_prod_id": e.ISVExtProdID,
		"attributes.flags": e.Flags, "attributes.xfrm": e.XFRM, "mr_enclave": e.MREnclave, "reserved2": e.Reserved2,
		"mr_signer": e.MRSigner, "reserved3": e.Reserved3, "config_id": e.ConfigID, "isv_prod_id": e.ISVProdID,
		"isv_svn": e.ISVSVN, "config_svn": e.ConfigSVN, "reserved4": e.Reserved4, "isv_family_id": e.ISVFamilyID,
		"report_data": e.ReportData,
	})
	out["report_data"] = hex.EncodeToString(e.ReportData)
	out["init_data"] = hex.EncodeToString(e.ConfigID)
	return out
}

func hexed(fields map[string][]byte) map[string]any {
	out := make(map[string]any, len(fields))
	for name, b := range fields {
		out[name] = hex.EncodeToString(b)
	}
	return out
}

package judge

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/verifier/dcap"
)

// Folder is a folder with what Intel publishes about one kind of platform, one file for each document: tcb_info.json,
// qe_identity.json, pck_crl.der, root_ca_crl.der (or .pem) and *_issuer_chain.pem. It answers for every platform asked for: whether
// the documents are about it is checked with their signatures.
type Folder struct {
	documents *dcap.Collateral
	// Time is an instant inside every window, from time.txt; zero without.
	Time time.Time
}

// IsCollateral tells whether a path is such a folder.
func IsCollateral(path string) bool {
	_, err := os.Stat(filepath.Join(path, "tcb_info.json"))
	return err == nil
}

// OpenCollateral reads a folder. Documents may be missing; a verdict then says so.
func OpenCollateral(path string) (*Folder, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("collateral: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("collateral: %s is no folder", path)
	}
	var faults []error
	read := func(names ...string) []byte {
		for _, name := range names {
			data, err := readBounded(filepath.Join(path, name), maxEvidence)
			if err == nil {
				return data
			}
			if !errors.Is(err, fs.ErrNotExist) {
				faults = append(faults, err)
			}
		}
		return nil
	}
	f := &Folder{documents: &dcap.Collateral{
		TCBInfo: read("tcb_info.json"), TCBInfoIssuerChain: read("tcb_info_issuer_chain.pem"),
		QEIdentity: read("qe_identity.json"), QEIdentityIssuerChain: read("qe_identity_issuer_chain.pem"),
		PCKCRL: list(read("pck_crl.der", "pck_crl.pem")), PCKCRLIssuerChain: read("pck_crl_issuer_chain.pem"),
		RootCRL: list(read("root_ca_crl.der", "root_ca_crl.pem")),
	}}
	if text := strings.TrimSpace(string(read("time.txt"))); text != "" {
		if f.Time, err = ParseTime(text); err != nil {
			faults = append(faults, fmt.Errorf("time.txt: %w", err))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("collateral %s: %w", path, err)
	}
	return f, nil
}

// list is a revocation list as DER or PEM; some services hand it out as hex digits.
func list(data []byte) []byte {
	if b, err := hex.DecodeString(string(bytes.TrimSpace(data))); err == nil && len(b) > 0 {
		return b
	}
	return data
}

// Collateral is part of dcap.Source.
func (f *Folder) Collateral(context.Context, string, string, string) (*dcap.Collateral, error) {
	return f.documents, nil
}

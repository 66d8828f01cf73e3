// Command libraries verifies evidence with the libraries that a user would take instead of Cloister, for cmd bench to compare with. It is
// a module of its own, so that none of them is a dependency of Cloister.
//
// It prints the nanoseconds of processor time that one verification took:
//
//	libraries COUNT TIME snp REPORT VCEK
//	libraries COUNT TIME tdx QUOTE COLLATERAL-FOLDER
package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	snpabi "github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	snpverify "github.com/google/go-sev-guest/verify"
	tdxverify "github.com/google/go-tdx-guest/verify"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "libraries: error: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 5 {
		return errors.New("want COUNT TIME snp|tdx FILE FILE|FOLDER")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil || count < 1 {
		return fmt.Errorf("count is %q, want a number from 1", args[0])
	}
	now, err := time.Parse(time.RFC3339, args[1])
	if err != nil {
		return err
	}
	evidence, err := os.ReadFile(args[3])
	if err != nil {
		return err
	}
	var once func() error
	switch args[2] {
	case "snp":
		once, err = snp(evidence, args[4], now)
	case "tdx":
		once, err = tdx(evidence, args[4], now)
	default:
		err = fmt.Errorf("there is no evidence %q, want snp or tdx", args[2])
	}
	if err != nil {
		return err
	}
	if err := once(); err != nil { // warm
		return err
	}
	start, err := processorTime()
	if err != nil {
		return err
	}
	for range count {
		if err := once(); err != nil {
			return err
		}
	}
	end, err := processorTime()
	if err != nil {
		return err
	}
	fmt.Println(int64(end-start) / int64(count))
	return nil
}

// snp verifies a report with its certificate, under AMD's roots, without CRLs.
func snp(report []byte, certificate string, now time.Time) (func() error, error) {
	vcek, err := os.ReadFile(certificate)
	if err != nil {
		return nil, err
	}
	return func() error {
		proto, err := snpabi.ReportToProto(report)
		if err != nil {
			return err
		}
		attestation := &spb.Attestation{Report: proto, CertificateChain: &spb.CertificateChain{VcekCert: vcek}}
		return snpverify.SnpAttestation(attestation, &snpverify.Options{DisableCertFetching: true, Now: now})
	}, nil
}

// tdx verifies a quote with what Intel publishes, CRLs among it.
func tdx(quote []byte, folder string, now time.Time) (func() error, error) {
	getter, err := newPublished(folder)
	if err != nil {
		return nil, err
	}
	// The certificates that are given are trusted, Intel's root among them: without any, the library writes three warnings per quote.
	chain, err := os.ReadFile(filepath.Join(folder, "tcb_info_issuer_chain.pem"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	return func() error {
		return tdxverify.RawTdxQuote(quote, &tdxverify.Options{
			CheckRevocations: true, GetCollateral: true, Getter: getter, Now: now, TrustedRoots: roots,
		})
	}, nil
}

func processorTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

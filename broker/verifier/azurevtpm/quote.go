package azurevtpm

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/cloister/cloister/tee/tpm"
	"github.com/cloister/cloister/wire/initdata"
)

const initDataPCR = 8

// checkQuote checks the signature, and that the values given are the quoted ones, all of them.
func (v *vtpm) checkQuote() error {
	if err := v.checkSignature(); err != nil {
		return err
	}
	if err := v.checkSelection(); err != nil {
		return err
	}
	values := map[int][]byte{}
	for i, p := range v.pcrs {
		values[i] = p
	}
	digest, err := tpm.PCRDigest(v.attest.Selections, tpm.PCRValues{tpm.AlgSHA256: values}, crypto.SHA256)
	if err != nil {
		return fmt.Errorf("hashing the register values: %w", err)
	}
	if !bytes.Equal(v.attest.PCRDigest, digest) {
		return fmt.Errorf("register digest of the TPM quote is %x, expected %x by the values given", v.attest.PCRDigest, digest)
	}
	return nil
}

func (v *vtpm) checkSignature() error {
	// Azure sends the bare signature; its one scheme is RSASSA-PKCS1-v1_5 with SHA-256.
	sig := &tpm.Signature{Scheme: tpm.AlgRSASSA, Hash: tpm.AlgSHA256, RSA: v.signature}
	if err := tpm.VerifySignature(v.runtime.AK, v.message, sig); err != nil {
		return fmt.Errorf("TPM quote, under the key HCLAkPub of the HCL report: %w", err)
	}
	return nil
}

func (v *vtpm) checkSelection() error {
	all := make([]int, pcrCount)
	for i := range all {
		all[i] = i
	}
	s := v.attest.Selections
	if len(s) != 1 || s[0].Bank != tpm.AlgSHA256 {
		return fmt.Errorf("TPM quote selects from %d banks, expected sha256 alone", len(s))
	}
	if !slices.Equal(s[0].PCRs, all) {
		return fmt.Errorf("TPM quote selects registers %v, expected all of 0 to %d", s[0].PCRs, pcrCount-1)
	}
	return nil
}

// checkInitData checks that PCR 8 was extended once, with the digest. A TPM register takes digests of 32 bytes only.
func (v *vtpm) checkInitData(digest []byte) error {
	if digest == nil {
		return nil
	}
	if len(digest) != pcrSize {
		return fmt.Errorf("digest of the init-data has %d bytes, expected %d: behind a TPM, init-data needs algorithm sha256",
			len(digest), pcrSize)
	}
	want, err := initdata.PCR8(digest)
	if err != nil {
		return fmt.Errorf("init-data cannot be held against a TPM: %w", err)
	}
	if got := v.pcrs[initDataPCR]; !bytes.Equal(got, want) {
		if bytes.Equal(got, make([]byte, pcrSize)) {
			return errors.New("pcr08 is zero: the guest measured no init-data, but some was sent")
		}
		return fmt.Errorf("pcr08 is %x, expected %x: the init-data sent is not what the guest measured", got, want)
	}
	return nil
}

package qemu

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister/cloister/host/process"
	"github.com/cloister/cloister/internal/paths"
)

// Files of the local certificate authority.
const (
	caKeyFile    = "signkey.pem"
	caCertFile   = "issuercert.pem"
	caSerialFile = "certserial"
)

// TPMRoots makes sure that the certificate authority of the software TPMs exists and returns the PEM file with its self-signed
// certificate. It is the direct issuer of every endorsement key certificate. A broker that trusts it trusts this host's word for the
// TPM, which is what a software TPM can give.
func TPMRoots(ctx context.Context, caDir string) (string, error) {
	if err := paths.Private(caDir); err != nil {
		return "", fmt.Errorf("certificate authority of the software TPM: %w", err)
	}
	cert := filepath.Join(caDir, caCertFile)
	lock, err := paths.WaitLock(ctx, filepath.Join(caDir, ".lock"))
	if err != nil {
		return "", fmt.Errorf("certificate authority of the software TPM: %w", err)
	}
	defer lock.Unlock()
	// The certificate is written last, so that it exists only together with its key.
	if _, err := os.Stat(cert); err == nil {
		return cert, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("certificate authority of the software TPM: %w", err)
	}
	if err := makeCA(caDir, time.Now()); err != nil {
		return "", fmt.Errorf("making the certificate authority of the software TPM: %w", err)
	}
	return cert, nil
}

func makeCA(dir string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Cloister software TPM authority " + serial.Text(16)[:8]},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.AddDate(20, 0, 0),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := paths.WriteFile(filepath.Join(dir, caKeyFile), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		return err
	}
	return paths.WriteFile(filepath.Join(dir, caCertFile), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// manufactureTPM makes the state of a new TPM in dir: an RSA-2048 endorsement key with a certificate of the local authority, and
// SHA-256 as the only active PCR bank. It returns the state directory.
func manufactureTPM(ctx context.Context, dir, vmName, caDir string) (string, error) {
	setup, err := exec.LookPath("swtpm_setup")
	if err != nil {
		return "", fmt.Errorf("making the TPM: %w", err)
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return "", fmt.Errorf("making the TPM: %w", err)
	}
	if _, err := TPMRoots(ctx, caDir); err != nil {
		return "", err
	}
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(state, 0o700); err != nil {
		return "", fmt.Errorf("making the TPM: %w", err)
	}
	if strings.ContainsAny(dir+caDir, "\n\x00") {
		return "", fmt.Errorf("making the TPM: directory names %q and %q must not contain line breaks", dir, caDir)
	}
	ca := func(f string) string { return filepath.Join(caDir, f) }
	files := map[string]string{
		"localca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			caDir, ca(caKeyFile), ca(caCertFile), ca(caSerialFile)),
		"localca.options": "--platform-manufacturer Cloister\n--platform-version 1.0\n--platform-model QEMU\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\nactive_pcr_banks = sha256\n",
			localca, filepath.Join(dir, "localca.conf"), filepath.Join(dir, "localca.options")),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("making the TPM: %w", err)
		}
	}
	args := []string{
		"--tpm2", "--tpmstate", "dir://" + state, "--create-ek-cert", "--lock-nvram", "--pcr-banks", "sha256",
		"--config", filepath.Join(dir, "setup.conf"), "--vmid", vmName, "--not-overwrite",
	}
	if os.Geteuid() == 0 {
		// As root the tool would change to the user tss, who cannot enter our directories. A change of user would also cancel
		// the parent-death signal.
		args = append([]string{"--runas", "root"}, args...)
	}
	p, err := process.Start(setup, args, process.Environment(dir))
	if err != nil {
		return "", fmt.Errorf("making the TPM: %w", err)
	}
	if err := p.Wait(ctx); err != nil {
		return "", fmt.Errorf("making the TPM with %s: %w; it printed:\n  %s", setup, err, strings.Join(p.Output.Lines(12), "\n  "))
	}
	return state, nil
}

// startTPM starts the TPM on a connected control socket. It ends when the other end of that socket closes.
func startTPM(state, tmp string, control *os.File) (*process.Child, error) {
	swtpm, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, fmt.Errorf("starting the TPM: %w", err)
	}
	return process.Start(swtpm, []string{
		"socket", "--tpm2", "--tpmstate", "dir=" + state + ",mode=0600",
		"--ctrl", "type=unixio,clientfd=3", "--terminate",
	}, process.Environment(tmp), control)
}

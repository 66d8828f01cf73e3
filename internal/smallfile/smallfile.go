// Package smallfile reads the small files that a configuration names: certificates, keys, tokens. One that is too large is refused and
// not cut, as what is missing at its end would not be seen.
package smallfile

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxRoots bounds a file of authorities, in bytes: those of whole systems have a quarter of that.
const maxRoots = 1 << 20

// Read reads a file of at most so many bytes. Its errors name the file.
func Read(name string, most int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err // it names the file
	}
	if int64(len(raw)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return raw, nil
}

// Roots reads PEM files of authorities; none gives nil, which means those of the system.
func Roots(files ...string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	roots := x509.NewCertPool()
	for _, file := range files {
		pem, err := Read(file, maxRoots)
		if err != nil {
			return nil, err
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", file)
		}
	}
	return roots, nil
}

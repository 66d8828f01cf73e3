package extract

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/cloister/cloister/broker/xmlsig"
	"github.com/cloister/cloister/tee/rim"
)

const (
	nsSWID = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
	nsRIM  = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/"
)

// swid reads a manifest. When roots are configured the signature must be that of a certificate under one of them, and only
// the bytes that it is over are read for content.
func (t *Trust) swid(doc []byte, now time.Time) (*Values, error) {
	out := &Values{Signer: Unsigned}
	if !t.swidRoots.empty() {
		whole, err := rim.Parse(doc)
		if err != nil {
			return nil, fmt.Errorf("reading signed manifest: %w", err)
		}
		key, err := t.swidRoots.signer(whole.Certificates, now)
		if err != nil {
			return nil, err
		}
		if doc, err = xmlsig.Verify(doc, key.public, key.name); err != nil {
			return nil, err
		}
		out.Signer = key.name
	}
	content, err := rim.ParseContent(doc)
	if err != nil {
		return nil, err
	}
	prefix, err := swidPrefix(doc, content.Edition)
	if err != nil {
		return nil, err
	}
	out.Named = map[string]json.RawMessage{}
	for _, m := range content.Measurements {
		var hashes []string
		for _, h := range m.Hashes {
			if strings.Trim(h, "0") != "" {
				hashes = append(hashes, h)
			}
		}
		if len(hashes) == 0 {
			continue // no measurement at this index
		}
		name := strings.ReplaceAll(prefix+".measurement_"+strconv.Itoa(m.Index), "-", "_")
		if out.Named[name], err = encode(hashes); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// swidPrefix makes the prefix of the names: <manufacturer>.<edition>. The document has been read by package rim, which made
// sure that it has one Meta, a child of the root.
func swidPrefix(doc []byte, edition string) (string, error) {
	dec := xml.NewDecoder(bytes.NewReader(doc))
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return "", fmt.Errorf("looking for Meta: %w", err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			if depth++; depth != 2 || e.Name != (xml.Name{Space: nsSWID, Local: "Meta"}) {
				continue
			}
			maker := ""
			for _, a := range e.Attr {
				if a.Name == (xml.Name{Space: nsRIM, Local: "PlatformManufacturerStr"}) {
					maker = a.Value
				}
			}
			if maker == "" || edition == "" {
				return "", errors.New("manifest has no PlatformManufacturerStr or no edition, which names are made of")
			}
			return strings.ReplaceAll(maker, " ", "_") + "." + edition, nil
		case xml.EndElement:
			depth--
		}
	}
}

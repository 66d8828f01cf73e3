package guestimage

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"sort"
	"strings"
)

// The parts of SPDX 2.3 that a bill of materials of this size needs.
type spdxDocument struct {
	SPDXVersion       string             `json:"spdxVersion"`
	DataLicense       string             `json:"dataLicense"`
	SPDXID            string             `json:"SPDXID"`
	Name              string             `json:"name"`
	DocumentNamespace string             `json:"documentNamespace"`
	CreationInfo      spdxCreation       `json:"creationInfo"`
	Packages          []spdxPackage      `json:"packages"`
	Relationships     []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	Name             string         `json:"name"`
	SPDXID           string         `json:"SPDXID"`
	VersionInfo      string         `json:"versionInfo,omitempty"`
	DownloadLocation string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
	ExternalRefs     []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm     string `json:"algorithm"`
	ChecksumValue string `json:"checksumValue"`
}

type spdxRef struct {
	ReferenceCategory string `json:"referenceCategory"`
	ReferenceType     string `json:"referenceType"`
	ReferenceLocator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	SPDXElementID      string `json:"spdxElementId"`
	RelationshipType   string `json:"relationshipType"`
	RelatedSPDXElement string `json:"relatedSpdxElement"`
}

// sbomInput names the parts of an image.
type sbomInput struct {
	Kernel       KernelLock
	Runc         RuncLock
	Guest        []byte // binaries with their Go build information
	RuncBinary   []byte
	Roots        []byte // the bundle of certificate authorities
	InitrdSHA256 string
}

// makeSBOM lists what is in the image: the kernel package, and for each
// binary the modules the Go linker recorded in it. It holds no time and no
// name of a machine, so that equal images have equal bills.
func makeSBOM(in sbomInput) ([]byte, error) {
	doc := spdxDocument{
		SPDXVersion:       "SPDX-2.3",
		DataLicense:       "CC0-1.0",
		SPDXID:            "SPDXRef-DOCUMENT",
		Name:              "cloister-guest-image",
		DocumentNamespace: "https://cloister.invalid/spdx/guest-image/" + in.InitrdSHA256,
		CreationInfo:      spdxCreation{Created: "1970-01-01T00:00:00Z", Creators: []string{"Tool: cloister"}},
	}
	relate := func(from, kind, to string) {
		doc.Relationships = append(doc.Relationships, spdxRelationship{from, kind, to})
	}
	arch := "amd64"
	if reSource.MatchString(in.Kernel.Package) {
		arch = "all" // what the kernel was built from
	}
	doc.Packages = append(doc.Packages, spdxPackage{
		Name: in.Kernel.Package, SPDXID: "SPDXRef-kernel", VersionInfo: in.Kernel.Version, DownloadLocation: "NOASSERTION",
		Checksums: []spdxChecksum{{"SHA256", in.Kernel.SHA256}},
		ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl",
			fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s", purlEscape(in.Kernel.Package), purlEscape(in.Kernel.Version), arch, in.Kernel.Suite)}},
	})
	relate("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-kernel")

	doc.Packages = append(doc.Packages, spdxPackage{
		Name: rootsModule, SPDXID: "SPDXRef-roots", DownloadLocation: "NOASSERTION", Checksums: []spdxChecksum{{"SHA256", hexSHA256(in.Roots)}},
		ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + rootsModule}},
	})
	relate("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-roots")

	seen := map[string]bool{}
	for _, b := range []struct {
		id, name string
		data     []byte
	}{{"SPDXRef-guest", "cloister-guest", in.Guest}, {"SPDXRef-runc", "runc", in.RuncBinary}} {
		p := spdxPackage{
			Name: b.name, SPDXID: b.id, DownloadLocation: "NOASSERTION",
			Checksums: []spdxChecksum{{"SHA256", hexSHA256(b.data)}},
		}
		if b.name == "runc" {
			p.VersionInfo = in.Runc.Version
		}
		info, err := buildinfo.Read(bytes.NewReader(b.data))
		if err != nil {
			// A binary that is not Go has no module list; it is still named.
			doc.Packages = append(doc.Packages, p)
			relate("SPDXRef-DOCUMENT", "DESCRIBES", b.id)
			continue
		}
		doc.Packages = append(doc.Packages, p)
		relate("SPDXRef-DOCUMENT", "DESCRIBES", b.id)
		for _, m := range append([]*debug.Module{{Path: "stdlib", Version: info.GoVersion}}, info.Deps...) {
			if m.Replace != nil {
				m = m.Replace
			}
			id := "SPDXRef-" + spdxID(m.Path+"-"+m.Version)
			if !seen[id] {
				seen[id] = true
				doc.Packages = append(doc.Packages, spdxPackage{
					Name: m.Path, SPDXID: id, VersionInfo: m.Version, DownloadLocation: "NOASSERTION",
					ExternalRefs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + m.Version}},
				})
			}
			relate(b.id, "DEPENDS_ON", id)
		}
	}
	sort.SliceStable(doc.Packages, func(i, j int) bool { return doc.Packages[i].SPDXID < doc.Packages[j].SPDXID })
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("encoding the bill of materials: %w", err)
	}
	return buf.Bytes(), nil
}

// spdxID keeps to the characters an SPDX identifier may have.
func spdxID(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			return r
		}
		return '-'
	}, s)
}

func purlEscape(s string) string {
	return strings.NewReplacer("+", "%2B", "~", "%7E").Replace(s)
}

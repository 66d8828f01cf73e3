package agent

import (
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/cloister/cloister/guest/crypt"
	"github.com/cloister/cloister/layer/sealed"
	"github.com/cloister/cloister/wire/agent"
)

// driverLayers marks a storage as one of a root file system of several layers, as the option does.
const driverLayers = "erofs.multi-layer"

// Options of the layers that the host attaches. The ones of Kata have its names; the own one numbers layers that are a disk each.
const (
	optionMultiLayer  = "X-kata.multi-layer"
	optionUpper       = "X-kata.overlay-upper"
	optionLower       = "X-kata.overlay-lower"
	optionMkdir       = "X-kata.mkdir.path"
	optionGPT         = "X-kata.gpt-partitioned"
	optionPartition   = "X-kata.partition-number"
	optionVerity      = "X-kata.dmverity-enabled"
	optionRoot        = "X-kata.dmverity.roothash"
	optionHashOffset  = "X-kata.dmverity.hashoffset"
	optionNoSuper     = "X-kata.dmverity.no-superblock"
	optionSalt        = "X-kata.dmverity.salt"
	optionBlockSize   = "X-kata.dmverity.blocksize"
	optionHashSize    = "X-kata.dmverity.hashsize"
	optionAlgorithm   = "X-kata.dmverity.algorithm"
	optionHashType    = "X-kata.dmverity.hashtype"
	optionLayerNumber = "X-cloister.layer-number"
	optionKeyID       = "X-cloister.sealed.key-id"
)

// upperDir is where, in a container's directory, the disk for what it writes is mounted.
const upperDir = "multi-layer/upper"

// maxLayers is the number of partitions of a disk.
const maxLayers = 128

// layered is a root file system of layers.
type layered struct {
	lowers []*lowerLayer // the topmost first
	upper  *agent.Storage
}

// lowerLayer is a layer that is only read.
type lowerLayer struct {
	driver, source string
	number         int // 1 is the topmost
	partition      bool
	verity         *crypt.Verity // nil: what the host attached is used as it is
	keyID          string        // of a sealed layer, else ""
	storage        *agent.Storage
}

func (l *lowerLayer) String() string {
	text := fmt.Sprintf("layer %d at %s %s", l.number, l.driver, l.source)
	if l.verity != nil {
		text += " with root hash " + l.verity.Root
	}
	return text
}

// isLayer says whether a storage belongs to a root file system of layers. One that only looks so belongs, too: what is missing is then
// found, and nothing is taken for a disk without hashes.
func isLayer(s *agent.Storage) bool {
	return s.GetDriver() == driverLayers || slices.ContainsFunc(s.GetOptions(), func(o string) bool {
		for _, prefix := range []string{optionMultiLayer, "X-kata.overlay-", optionGPT, optionPartition, "X-kata.dmverity", "X-cloister."} {
			if strings.HasPrefix(o, prefix) {
				return true
			}
		}
		return false
	})
}

// splitLayers takes the layers out of the storages of a request. The root file system comes from them alone.
func splitLayers(list []*agent.Storage) (layers, rest []*agent.Storage, err error) {
	for _, s := range list {
		if isLayer(s) {
			layers = append(layers, s)
		} else {
			rest = append(rest, s)
		}
	}
	for _, s := range rest {
		if len(layers) > 0 && filepath.Clean(s.GetMountPoint()) == layers[0].GetMountPoint() {
			return nil, nil, invalid("storage %.40s at %.120q, where layers are", s.GetDriver(), s.GetMountPoint())
		}
	}
	return layers, rest, nil
}

// parseLayers reads the storages of one root file system, which is to be at a place.
func parseLayers(list []*agent.Storage, rootfs string) (*layered, error) {
	if len(list) > maxLayers+1 {
		return nil, invalid("%d layers, at most %d are accepted", len(list), maxLayers)
	}
	out := &layered{}
	var byNumber [maxLayers + 1]*lowerLayer
	for i, s := range list {
		if err := out.add(s, rootfs, &byNumber); err != nil {
			return nil, fmt.Errorf("storage %d of the layers: %w", i+1, err)
		}
	}
	for _, l := range byNumber {
		if l != nil {
			out.lowers = append(out.lowers, l)
		}
	}
	if len(out.lowers) == 0 {
		return nil, invalid("there is only a writable layer")
	}
	for _, l := range out.lowers {
		if l.partition != out.lowers[0].partition {
			return nil, invalid("all layers are in partitions, or none")
		}
	}
	return out, nil
}

// add reads one storage.
func (g *layered) add(s *agent.Storage, rootfs string, byNumber *[maxLayers + 1]*lowerLayer) error {
	opts, err := layerOptions(s)
	if err != nil {
		return err
	}
	_, upper := opts[optionUpper]
	_, lower := opts[optionLower]
	switch {
	case s.GetMountPoint() != rootfs:
		return invalid("layers belong at %s, not %.120q", rootfs, s.GetMountPoint())
	case opts[optionMultiLayer] != "true" || upper == lower || s.GetShared():
		return invalid("it needs %s=true and one of %s and %s, and is not shared", optionMultiLayer, optionLower, optionUpper)
	case upper && g.upper != nil:
		return invalid("there is a writable layer already")
	case upper:
		g.upper, err = upperStorage(s, rootfs)
		return err
	}
	l, err := parseLower(s, opts)
	if err != nil {
		return err
	}
	if byNumber[l.number] != nil {
		return invalid("there is a layer %d already", l.number)
	}
	byNumber[l.number] = l
	return nil
}

// layerOptions reads the options of a layer. All have a meaning here: one that is unknown, or there twice, is refused.
func layerOptions(s *agent.Storage) (map[string]string, error) {
	opts := map[string]string{}
	for _, o := range s.GetOptions() {
		key, value, _ := strings.Cut(o, "=")
		if _, twice := opts[key]; twice && key != optionMkdir {
			return nil, invalid("option %.60q is there twice", key)
		}
		opts[key] = value
		ok := true
		switch key {
		case optionMultiLayer, optionGPT, optionVerity:
			ok = value == "true"
		case optionUpper, optionLower:
			ok = key == o
		case optionAlgorithm:
			ok = value == "sha256"
		case optionHashType:
			ok = value == "1"
		case optionNoSuper:
			ok = value == "true" || value == "false"
		case optionMkdir, optionPartition, optionRoot, optionHashOffset, optionSalt, optionBlockSize, optionHashSize, optionLayerNumber, optionKeyID:
		default:
			ok = !strings.HasPrefix(o, "X-") && !strings.HasPrefix(o, "io.katacontainers.") // for the mount to judge
		}
		if !ok {
			return nil, invalid("option %.120q", o)
		}
	}
	return opts, nil
}

// upperStorage is the disk below the writable layer, as any other disk of the host. Which directories it needs is known here.
func upperStorage(s *agent.Storage, rootfs string) (*agent.Storage, error) {
	if s.GetFstype() != "ext4" {
		return nil, fmt.Errorf("writable layer of type %.40q: %w", s.GetFstype(), errUnsupported)
	}
	out := proto.CloneOf(s)
	out.Options, out.MountPoint = nil, filepath.Join(filepath.Dir(rootfs), upperDir)
	for _, o := range s.GetOptions() {
		switch {
		case o == optionUpper, o == optionMultiLayer+"=true", strings.HasPrefix(o, optionMkdir+"="):
		case strings.HasPrefix(o, "X-"):
			return nil, invalid("option %.60q of a writable layer", o)
		default:
			out.Options = append(out.Options, o)
		}
	}
	return out, nil
}

func parseLower(s *agent.Storage, opts map[string]string) (*lowerLayer, error) {
	l := &lowerLayer{driver: s.GetDriver(), source: s.GetSource(), storage: s}
	if l.driver == driverLayers {
		l.driver = driverBlock
		if strings.Contains(l.source, ":") {
			l.driver = driverSCSI
		}
	}
	key := optionLayerNumber
	if _, l.partition = opts[optionGPT]; l.partition {
		key = optionPartition
	}
	var err error
	switch l.driver {
	case driverBlock, driverSCSI, driverMMIO:
	default:
		return nil, invalid("layer of driver %.40q", l.driver)
	}
	if s.GetFstype() != "erofs" {
		return nil, fmt.Errorf("layer of type %.40q: %w", s.GetFstype(), errUnsupported)
	}
	if len(s.GetDriverOptions()) > 0 || s.GetFsGroup() != nil {
		return nil, invalid("a layer has no driver options and no group")
	}
	for o := range opts {
		switch {
		case o == optionPartition && !l.partition, o == optionLayerNumber && l.partition, o == optionMkdir:
			return nil, invalid("option %s does not go with the others", o)
		case strings.HasPrefix(o, "X-"), o == "", o == "ro", o == "nodev", o == "relatime", o == "noatime", o == "defaults":
		default:
			return nil, invalid("option %.60q of a layer", o)
		}
	}
	if l.number, err = number(opts, key, 0, maxLayers); err != nil || l.number < 1 {
		return nil, invalid("option %s=%.20q: expected 1 to %d", key, opts[key], maxLayers)
	}
	if l.verity, err = parseVerity(opts); err != nil {
		return nil, err
	}
	if l.keyID = opts[optionKeyID]; l.keyID == "" {
		return l, nil
	}
	if l.verity == nil || l.verity.BlockSize != sealed.BlockSize {
		return nil, invalid("a sealed layer has hashes over blocks of %d bytes", sealed.BlockSize)
	}
	return l, sealed.CheckKeyID(l.keyID)
}

// parseVerity reads what says how a layer is verified.
func parseVerity(opts map[string]string) (*crypt.Verity, error) {
	if _, on := opts[optionVerity]; !on {
		for o := range opts {
			if strings.HasPrefix(o, optionVerity[:len("X-kata.dmverity")]) {
				return nil, invalid("option %s without %s=true", o, optionVerity)
			}
		}
		return nil, nil
	}
	const block = 4096
	v := &crypt.Verity{Root: opts[optionRoot], NoSuperblock: opts[optionNoSuper] == "true"}
	offset, err := strconv.ParseInt(opts[optionHashOffset], 10, 64)
	if err != nil || offset <= 0 {
		return nil, invalid("option %s=%.40q", optionHashOffset, opts[optionHashOffset])
	}
	v.HashOffset = offset
	if v.BlockSize, err = number(opts, optionBlockSize, block, block); err != nil {
		return nil, err
	}
	if v.HashSize, err = number(opts, optionHashSize, block, block); err != nil {
		return nil, err
	}
	var salt string
	if salt, v.HasSalt = opts[optionSalt]; salt != "-" {
		if v.Salt, err = hex.DecodeString(salt); err != nil {
			return nil, invalid("option %s=%.80q", optionSalt, salt)
		}
	}
	if v.NoSuperblock && !v.HasSalt {
		v.Salt = make([]byte, 32) // what builders of layers use
	}
	return v, nil
}

// number reads a decimal option, at most most; one that is not there is missing.
func number(opts map[string]string, key string, missing, most int) (int, error) {
	text, ok := opts[key]
	if !ok {
		return missing, nil
	}
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || int(n) > most || strconv.FormatUint(n, 10) != text {
		return 0, invalid("option %s=%.20q", key, text)
	}
	return int(n), nil
}

package aci

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloister/cloister/author/imagesource"
	"github.com/cloister/cloister/layer"
)

// MaxLayer is the largest layer that a guest takes, in bytes when decompressed.
const MaxLayer = 128 << 30

// Source is an imagesource.Source with roots of recipe hcsshim-ext4 for linux/amd64, which is all that Azure Container Instances run:
// see SourceOptions.
type Source struct{ Images imagesource.Source }

// SourceOptions changes options of image sources to those that policies of this kind need.
func SourceOptions(o imagesource.Options) imagesource.Options {
	o.Architecture, o.Recipe, o.MaxLayer = "amd64", layer.HCSShim, MaxLayer
	return o
}

// Image implements Images.
func (s Source) Image(ctx context.Context, name string) (Image, error) {
	img, err := s.Images.Image(ctx, name, imagesource.Need{Roots: true})
	if err != nil {
		return Image{}, fmt.Errorf("reading image %s: %w", name, err)
	}
	c := img.Config
	out := Image{Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal}
	for _, l := range img.Layers {
		if l.Root == "" {
			return Image{}, fmt.Errorf("reading image %s: %w", name, errors.New("a layer has no root hash"))
		}
		out.Layers = append(out.Layers, l.Root)
	}
	return out, nil
}

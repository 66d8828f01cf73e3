package agent

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// FeatureImageVolumes is the extra feature of agents that make the directories which images declare as volumes (VOLUME). The host mounts
// one by a source with a name of ImageVolume below the shared directory and sends nothing for it. Names look as those of all other
// mounts, so that policies for hosts that copy such directories admit them.
const FeatureImageVolumes = "cloister-image-volumes"

// maxImageVolumes is what the number in a name has room for.
const maxImageVolumes = 100_000

// ImageVolumePattern is the expression of what stands in those names where others have 16 random hexadecimal digits.
const ImageVolumePattern = "imagevolume[0-9]{5}"

var imageVolumeMark = regexp.MustCompile("-" + ImageVolumePattern + "-")

// ImageVolume is the name of the n-th image volume of a container, with the last element of where it is mounted. Only the first 100000
// have a name of their own.
func ImageVolume(containerID string, n int, destination string) string {
	return fmt.Sprintf("%s-imagevolume%05d-%s", containerID, n%maxImageVolumes, path.Base(path.Clean(destination)))
}

// IsImageVolume says whether a name below the shared directory is that of an image volume of this container.
func IsImageVolume(containerID, name string) bool {
	rest, ok := strings.CutPrefix(name, containerID)
	at := imageVolumeMark.FindStringIndex(rest)
	return ok && at != nil && at[0] == 0 && !strings.Contains(rest, "/")
}

// ReservedForImageVolume says whether a name below the shared directory can be that of an image volume of any container. Nothing is
// copied there.
func ReservedForImageVolume(name string) bool { return imageVolumeMark.MatchString(name) }

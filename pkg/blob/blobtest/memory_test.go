package blobtest

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

func TestMemoryConformance(t *testing.T) {
	Run(t, func(*testing.T) blob.Store { return NewMemory() }, Capabilities{})
}

package main

import (
	"context"
	"io"
	"iter"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func specOf(n int) cluster.Spec { return cluster.Spec{MemberCount: n} }

func (b broken) Get(context.Context, string, blob.Range) (io.ReadCloser, blob.Info, error) {
	return nil, blob.Info{}, b.err
}

func (b broken) List(context.Context, string, blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, b.err) }
}

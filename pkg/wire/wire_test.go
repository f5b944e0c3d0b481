package wire

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// fill gives every field below v a value that is not zero, and no two of a kind the same one.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1_700_000_000, int64(*n))))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n))
	default:
		panic(v.Kind())
	}
}

// A field that is added to the nouns and forgotten here is found out.
func TestStatusRoundTrip(t *testing.T) {
	var want cluster.NodeStatus
	n := 0
	fill(reflect.ValueOf(&want).Elem(), &n)
	got := StatusFromProto(StatusToProto(want))
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAbsentStaysAbsent(t *testing.T) {
	if StateToProto(nil) != nil || StateFromProto(nil) != nil {
		t.Error("no state must stay no state: it says that the node belongs to no cluster")
	}
	if s := StatusFromProto(StatusToProto(cluster.NodeStatus{Clock: time.Unix(0, 0)})); s.State != nil ||
		s.Staged != nil || s.Etcd.Members != nil {
		t.Errorf("something came out of nothing: %+v", s)
	}
}

func TestSpecRoundTrip(t *testing.T) {
	want := cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.16"}
	if got := SpecFromProto(SpecToProto(want)); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

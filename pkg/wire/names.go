package wire

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// CheckNames looks through a message, however deep, for the names that become path elements on a node:
// tokens, operations, members. A name that is
// not said is left to whoever needs it. The error wraps cluster.ErrName and says where the name stands.
func CheckNames(m proto.Message) error {
	if m == nil {
		return nil
	}
	return checkMessage(m.ProtoReflect())
}

func checkMessage(m protoreflect.Message) (err error) {
	if !m.IsValid() {
		return nil
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList():
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = checkValue(f, v.List().Get(i))
			}
		case f.IsMap():
		default:
			err = checkValue(f, v)
		}
		return err == nil
	})
	return err
}

func checkValue(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return checkMessage(v.Message())
	case protoreflect.StringKind:
		if err := checkString(f, v.String()); err != nil {
			return fmt.Errorf("%s: %w", f.FullName(), err)
		}
	}
	return nil
}

func checkString(f protoreflect.FieldDescriptor, s string) (err error) {
	switch {
	case s == "":
	case f.Name() == "token" || f.Name() == "cluster_token":
		_, err = cluster.ParseToken(s)
	case f.Name() == "operation":
		_, err = cluster.ParseOperationID(s)
	case f.Name() == "name" && f.Parent().Name() == "EtcdNode":
		err = cluster.CheckNodeName(s)
	}
	return err
}

set -euo pipefail
export LC_ALL=C

refuse() {
    echo "error: $1" >&2
    exit 1
}

usage="bash $0 --image IMAGE --claim CLAIM [--gpus N] [--namespace NAMESPACE] [--every SECONDS]"
image='' claim='' gpus='' namespace='' every=10
while (($#)); do
    case $1 in
    -h | --help)
        echo "$usage"
        exit
        ;;
    --image) form='[A-Za-z0-9][A-Za-z0-9._/:@-]*' ;;
    --claim | --namespace) form='[a-z0-9]([a-z0-9.-]*[a-z0-9])?' ;;
    --gpus) form='[1-9][0-9]*' ;;
    --every) form='[0-9]+([.][0-9]+)?' ;;
    *) refuse "there is no option \`$1\`, expected $usage" ;;
    esac
    [[ ${2-} =~ ^($form)$ ]] || refuse "\`$1\` is \`${2-}\`, expected what \`$form\` matches"
    printf -v "${1#--}" %s "$2"
    shift 2
done
[[ -n $image && -n $claim ]] || refuse "\`--image\` and \`--claim\` are needed: $usage"
command -v kubectl >/dev/null || refuse "there is no \`kubectl\` on the PATH"

# in_namespace WORD...: kubectl, in the namespace that was given
in_namespace() {
    kubectl ${namespace:+"--namespace=$namespace"} "$@"
}

# state NAME: the name of a Job, the conditions that hold for it, and the indexes that failed; nothing where
# there is no such Job. A server that does not answer is asked 30 times.
state() {
    local left fields='{.metadata.name}{range .status.conditions[?(@.status=="True")]} {.type}{end}'
    fields+=' at {.status.failedIndexes}'
    for left in {29..0}; do
        in_namespace get job "$1" --ignore-not-found --output="jsonpath=$fields" && return
        ((left == 0)) || sleep "$every"
    done
    refuse "kubectl cannot tell how the job \`$1\` is; it goes on, and so does this script when called again"
}

# begin NAME: makes the Job on standard input, unless there is one of that name that has not failed
begin() {
    local job found
    job=$(cat)
    job=${job/'"image":"IMAGE"'/"\"image\":\"$image\""}
    job=${job/'"claimName":"CLAIM"'/"\"claimName\":\"$claim\""}
    if [[ -n $gpus ]]; then
        job=${job/'"resources":{}'/"\"resources\":{\"limits\":{\"nvidia.com/gpu\":\"$gpus\"}}"}
    fi
    found=$(state "$1")
    case $found in
    *' Failed '*) in_namespace delete job "$1" ;;
    ?*)
        echo "$1: is there"
        return
        ;;
    esac
    in_namespace create --filename=- <<<"$job"
}

# finish NAME...: waits until each of the Jobs has ended, well or not
finish() {
    local name found
    for name; do
        ended=''
        while [[ -z $ended ]]; do
            found=$(state "$name")
            case $found in
            *' Complete '*) ended=complete ;;
            *' Failed '*) ended="failed at ${found##* at }" ;;
            ?*) sleep "$every" ;;
            *) refuse "the job \`$name\` is gone" ;;
            esac
        done
        echo "$name: $ended"
        if [[ $ended != complete ]]; then
            echo "    kubectl logs --prefix --tail=20 --selector=batch.kubernetes.io/job-name=$name"
        fi
    done
}


# NVMe controllers: a specification such as "size=1G,lba=4096,backing=null" in, QEMU's arguments out.

# Appends controller INDEX as SPECIFICATION says to `nvme`, and who is to drive it to `drivers`.
add_controller() {
    local index=$1 spec=$2 size=1G lba=512 backing=file mdts=7 queues=8 ms=0 pi=0 driver=$default_driver
    local field fields key value
    IFS=, read -ra fields <<<"$spec"
    for field in "${fields[@]}"; do
        key=${field%%=*} value=${field#*=}
        case $key in
            size) expect "$field" "$value" '[1-9][0-9]*[MG]' "like 512M or 1G"; size=$value ;;
            lba) expect "$field" "$value" '512|4096' "512 or 4096"; lba=$value ;;
            backing) expect "$field" "$value" 'file|disk|null|memory' "file, disk, null or memory"; backing=$value ;;
            mdts) expect "$field" "$value" '[0-9]|1[0-6]' "0 (no limit) to 16: 4 KiB << mdts"; mdts=$value ;;
            queues) expect "$field" "$value" '[1-9][0-9]{0,2}' "1 to 999"; queues=$value ;;
            ms) expect "$field" "$value" '0|8|16|64' "0, 8, 16 or 64 bytes"; ms=$value ;;
            pi) expect "$field" "$value" '[0-3]' "0 (none) to 3"; pi=$value ;;
            driver) expect "$field" "$value" 'nvme|vfio' "nvme or vfio"; driver=$value ;;
            *) usage_error "--nvme: unknown key in '$field'; there are size, lba, backing, mdts, queues, ms, pi, driver" ;;
        esac
    done
    [ "$driver" = nvme ] || $iommu || usage_error "VFIO needs the IOMMU: the guest's kernel has none without"
    drivers+=("$driver")
    [ "$pi" -eq 0 ] || [ "$ms" -ge 8 ] || usage_error "--nvme $spec: pi needs ms=8 or more"
    [ "$pi" -eq 0 ] || [ "$backing" != null ] || usage_error "--nvme $spec: backing=null keeps no protection data"

    local drive=if=none,id=drive$index
    case $backing in
        null) drive+=,driver=null-co,size=$size ;;
        file) truncate -s "$size" "$scratch/nvme$index"; drive+=,format=raw,discard=unmap,file=$scratch/nvme$index ;;
        disk) truncate -s "$size" "$scratch/nvme$index"; drive+=,format=raw,cache=none,aio=native,file=$scratch/nvme$index ;;
        memory) back_by_memory "$size"; drive+=,format=raw,discard=unmap,file=/dev/fd/$descriptor ;;
    esac
    local block=logical_block_size=$lba,physical_block_size=$lba
    nvme+=(
        -drive "$drive"
        -device "nvme,id=nvme$index,serial=lab$index,max_ioqpairs=$queues,msix_qsize=$((queues + 1)),mdts=$mdts"
        -device "nvme-ns,drive=drive$index,bus=nvme$index,nsid=1,shared=off,$block,ms=$ms,pi=$pi"
    )
}

expect() {
    local field=$1 value=$2 pattern=$3 hint=$4
    [[ $value =~ ^($pattern)$ ]] || usage_error "--nvme: '$field' should be $hint"
}

# Opens a nameless file in memory, which goes with the last process that has it open, as descriptor $descriptor.
back_by_memory() {
    local name
    name=$(mktemp /dev/shm/forebay-lab.XXXXXX)
    exec {descriptor}<>"$name"
    truncate -s "$1" "$name"
    rm "$name"
}

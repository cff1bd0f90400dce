/* What a CUDA build of torchvision 0.28 wants from a CUDA build of torch, for use beside a CPU build.
 *
 * Nothing here is called as long as no tensor is on a GPU; anything but a question for the number of GPUs ends the
 * process and says so. The names are the mangled ones of c10::cuda and at::cuda.
 */
#include <stdio.h>
#include <stdlib.h>

/* std::atomic<CUDAAllocator*> c10::cuda::CUDACachingAllocator::allocator */
void *_ZN3c104cuda20CUDACachingAllocator9allocatorE = NULL;

/* DeviceIndex c10::cuda::device_count() */
signed char _ZN3c104cuda12device_countEv(void) { return 0; }

#define UNAVAILABLE(symbol)                                                                  \
    void symbol(void) {                                                                      \
        fputs("torchvision called " #symbol ", which a CPU build of torch lacks\n", stderr); \
        abort();                                                                             \
    }

UNAVAILABLE(_ZN2at4cuda26getCurrentDevicePropertiesEv)
UNAVAILABLE(_ZN3c104cuda14ExchangeDeviceEa)
UNAVAILABLE(_ZN3c104cuda14MaybeSetDeviceEa)
UNAVAILABLE(_ZN3c104cuda14current_deviceEv)
UNAVAILABLE(_ZN3c104cuda17getStreamFromPoolEba)
UNAVAILABLE(_ZN3c104cuda17getStreamFromPoolEia)
UNAVAILABLE(_ZN3c104cuda20getCurrentCUDAStreamEa)
UNAVAILABLE(_ZN3c104cuda20getDefaultCUDAStreamEa)
UNAVAILABLE(_ZN3c104cuda20setCurrentCUDAStreamENS0_10CUDAStreamE)
UNAVAILABLE(_ZN3c104cuda29c10_cuda_check_implementationEiPKcS2_jb)
UNAVAILABLE(_ZN3c104cuda9GetDeviceEPa)
UNAVAILABLE(_ZN3c104cuda9SetDeviceEab)
UNAVAILABLE(_ZNK3c104cuda10CUDAStream11synchronizeEv)
UNAVAILABLE(_ZNK3c104cuda10CUDAStream5queryEv)
UNAVAILABLE(_ZNK3c104cuda10CUDAStream6streamEv)

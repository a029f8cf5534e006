from physseg.train.public.testing import *
